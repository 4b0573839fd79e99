// The passes of Derivatives over the ops of one tile; what an op does in them is in its own file,
// program/ops/<op>.cpp.
#include <algorithm>
#include <numeric>

#include "derivatives/derivatives.h"
#include "derivatives/parameters.h"
#include "program/ops/entry.h"

namespace pylandscape {

template <typename T>
Pass<T> Derivatives<T>::pass(int64_t tile, const Primal<T>& primal, size_t number,
                             const Mode& mode) const {
  const Program<T>& p = program_;
  return {p,
          layout_,
          kernels_,
          theta_,
          primal,
          p.tile_data(tile),
          p.tile_,
          p.padded_columns(tile),
          p.tile_columns(tile),
          number,
          p.ops_[number],
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          mode.waiting,
          mode.late != nullptr ? &mode.late->ops : nullptr,
          mode.helpers};
}

template <typename T>
const T* Derivatives<T>::output(const Primal<T>& primal) const {
  return primal.values.data() + layout_.row[program_.output_] * program_.tile_;
}

template <typename T>
T* Derivatives<T>::output_part(const Buffer<T>& rows) const {
  const int slot = program_.output_;
  return layout_.moves[slot] ? rows.data() + layout_.row[slot] * program_.tile_ : nullptr;
}

template <typename T>
double Derivatives<T>::primal(int64_t t, Primal<T>& to, double* gradient,
                              const Parallel* helpers) const {
  const Mode mode{helpers, nullptr, &late_};
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  forward(t, to, mode);
  std::vector<double> terms(cols);
  kernels_.loss(p.loss_, p.targets(t), cols, output(to), terms.data(), nullptr);
  const double loss =
      std::accumulate(terms.begin(), terms.begin() + p.tile_columns(t), 0.0);
  std::fill_n(to.adjoints.data(), to.adjoints.size(), T(0));
  T* seed = output_part(to.adjoints);
  if (seed == nullptr) return loss;  // no parameter reaches the output
  kernels_.loss_gradient(p.loss_, p.targets(t), cols, output(to), seed);
  clear_padding(p.slots_[p.output_], cols, p.tile_columns(t), seed);
  reverse(t, to, to.adjoints, to.panels.data(), gradient, mode);
  walk_bends(p, layout_, [&](size_t i) { return pass(t, to, i, mode); }, to);
  return loss;
}

template <typename T>
void Derivatives<T>::forward(int64_t t, Primal<T>& to, const Mode& mode) const {
  std::vector<const T*> slots(program_.slots_.size(), nullptr);
  slots[0] = program_.tile_data(t);
  walk_forward(all_ops(program_), [&](size_t i) { return pass(t, to, i, mode); }, to,
               slots.data());
}

template <typename T>
void Derivatives<T>::reverse(int64_t t, const Primal<T>& primal, const Buffer<T>& adjoints,
                             T* panels, double* gradient, const Mode& mode) const {
  walk_reverse(program_, layout_, all_ops(program_),
               [&](size_t i) { return pass(t, primal, i, mode); }, adjoints, panels,
               gradient);
}

template <typename T>
void Derivatives<T>::tangent_forward(int64_t t, const Primal<T>& primal, const Vector<T>& v,
                                     const Tangents<T>& to, const Mode& mode) const {
  walk_tangent_forward(program_, layout_, all_ops(program_),
                       [&](size_t i) { return pass(t, primal, i, mode); }, v, to.values);
}

template <typename T>
void Derivatives<T>::tangent_reverse(int64_t t, const Primal<T>& primal, const Vector<T>& v,
                                     const Tangents<T>& tangents, const Work& work,
                                     T* panels, double* out, const Mode& mode) const {
  walk_tangent_reverse(program_, layout_, all_ops(program_),
                       [&](size_t i) { return pass(t, primal, i, mode); }, v, tangents,
                       work.columns.data(), panels, out);
}

template <typename T>
void Derivatives<T>::seed(Matrix matrix, int64_t t, const Primal<T>& primal,
                          const Tangents<T>& tangents, const Work& work) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t), features = p.slots_[p.output_];
  std::fill_n(tangents.adjoints.data(), tangents.adjoints.size(), T(0));
  T* to = output_part(tangents.adjoints);
  const T* moved = output_part(tangents.values);
  if (matrix == Matrix::kCovariance) {  // sum_i (grad l_i) (grad l_i . v)
    const T* slopes = output_part(primal.adjoints);
    kernels_.column_dots(features, cols, slopes, moved, work.dots.data());
    std::copy_n(slopes, features * cols, to);
    kernels_.scale_columns(features, cols, work.dots.data(), to);
    return;
  }
  kernels_.loss_hvp(p.loss_, p.targets(t), cols, output(primal), moved, to);
  clear_padding(features, cols, p.tile_columns(t), to);
}

// v^T H v = Ry^T (d^2 l / dy^2) Ry of the output y + the sum over all ops of <dy, y''>, y'' the second
// derivative of the op's output along its own inputs' and parameters' tangents. That is one number
// of the op's second derivative: R(dx) and R(dp) with R(dy) = 0, times Rx and v.
template <typename T>
double Derivatives<T>::form(Matrix matrix, int64_t t, const Primal<T>& primal, const Vector<T>& v,
                            const T* vector, const Tangents<T>& tangents, Work& work,
                            const Mode& mode) const {
  const Program<T>& p = program_;
  const auto at = [&](size_t i) {
    return TangentReverse<T>(pass(t, primal, i, mode), v, tangents, work.columns.data(),
                             work.panels.data(), work.sums.data());
  };
  const int64_t cols = p.padded_columns(t);
  double total = at(0).dot(p.slots_[p.output_] * cols, output_part(tangents.adjoints),
                           output_part(tangents.values));
  if (matrix != Matrix::kHessian) return total;
  for (size_t i = 0; i < p.ops_.size(); ++i) {
    const Op& op = p.ops_[i];
    std::vector<int> moving;
    for (const int slot : op.inputs)
      if (layout_.moves[slot] && std::find(moving.begin(), moving.end(), slot) == moving.end())
        moving.push_back(slot);
    if (moving.empty()) continue;  // every op is linear in its parameters
    const TangentReverse<T> own = at(i);
    if (passes<T>(op.kind).form != nullptr) {
      total += passes<T>(op.kind).form(own);
      continue;
    }
    std::fill_n(own.rdy, own.size(), T(0));
    for (const int slot : moving)
      std::fill_n(own.at(tangents.adjoints, slot), p.slots_[slot] * cols, T(0));
    passes<T>(op.kind).tangent_reverse(own);
    for (const int slot : moving)
      total += own.dot(p.slots_[slot] * cols, own.at(tangents.adjoints, slot),
                       own.at(tangents.values, slot));
    op.each_use([&](int use) {
      if (!p.in_theta(use)) return;
      const Use& of = p.uses_[use];
      for (int64_t e = of.source; e < of.source + of.size(); ++e) {
        total += work.sums[e] * static_cast<double>(vector[e]);
        work.sums[e] = 0;
      }
    });
  }
  return total;
}

template <typename T>
void Derivatives<T>::add_sample_gradients(int64_t t, const Primal<T>& primal, T* out) const {
  for (size_t i = 0; i < program_.ops_.size(); ++i) {
    const Op& op = program_.ops_[i];
    if (layout_.moves[op.output])
      passes<T>(op.kind).sample_gradients(SampleGradients<T>(pass(t, primal, i, {}), out));
  }
}

template class Derivatives<float>;
template class Derivatives<double>;

}  // namespace pylandscape
