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
                             Waiting waiting) const {
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
          waiting};
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
double Derivatives<T>::primal(int64_t t, Primal<T>& to, double* gradient) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  forward(t, to);
  std::vector<double> terms(cols);
  kernels_.loss(p.loss_, p.targets(t), cols, output(to), terms.data(), nullptr);
  const double loss =
      std::accumulate(terms.begin(), terms.begin() + p.tile_columns(t), 0.0);
  std::fill_n(to.adjoints.data(), to.adjoints.size(), T(0));
  T* seed = output_part(to.adjoints);
  if (seed == nullptr) return loss;  // no parameter reaches the output
  kernels_.loss_gradient(p.loss_, p.targets(t), cols, output(to), seed);
  clear_padding(p.slots_[p.output_], cols, p.tile_columns(t), seed);
  reverse(t, to, to.adjoints, to.panels.data(), gradient);
  walk_bends(p, layout_, [&](size_t i) { return pass(t, to, i); }, to);
  return loss;
}

template <typename T>
void Derivatives<T>::forward(int64_t t, Primal<T>& to) const {
  std::vector<const T*> slots(program_.slots_.size(), nullptr);
  slots[0] = program_.tile_data(t);
  walk_forward(all_ops(program_), [&](size_t i) { return pass(t, to, i); }, to,
               slots.data());
}

template <typename T>
void Derivatives<T>::reverse(int64_t t, const Primal<T>& primal, const Buffer<T>& adjoints,
                             T* panels, double* gradient, Waiting waiting) const {
  walk_reverse(program_, layout_, all_ops(program_),
               [&](size_t i) { return pass(t, primal, i, waiting); }, adjoints, panels,
               gradient);
}

template <typename T>
void Derivatives<T>::tangent_forward(int64_t t, const Primal<T>& primal, const Vector<T>& v,
                                     const Tangents<T>& to) const {
  walk_tangent_forward(program_, layout_, all_ops(program_),
                       [&](size_t i) { return pass(t, primal, i); }, v, to.values);
}

template <typename T>
void Derivatives<T>::tangent_reverse(int64_t t, const Primal<T>& primal, const Vector<T>& v,
                                     const Tangents<T>& tangents, const Work& work,
                                     T* panels, Waiting waiting, double* out) const {
  walk_tangent_reverse(program_, layout_, all_ops(program_),
                       [&](size_t i) { return pass(t, primal, i, waiting); }, v, tangents,
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

template <typename T>
void Derivatives<T>::add_sample_gradients(int64_t t, const Primal<T>& primal, T* out) const {
  for (size_t i = 0; i < program_.ops_.size(); ++i) {
    const Op& op = program_.ops_[i];
    if (layout_.moves[op.output])
      passes<T>(op.kind).sample_gradients(SampleGradients<T>(pass(t, primal, i), out));
  }
}

template class Derivatives<float>;
template class Derivatives<double>;

}  // namespace pylandscape
