#include "program/derivatives.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kGroups = 8;  // independent partial sums over tiles; fixed, so bits are fixed
constexpr int64_t kVectorBlock = 16;  // vectors in flight

template <typename T>
void add(int64_t n, const T* x, T* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}
template <typename T>
void add_product(int64_t n, const T* x, const T* y, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += x[i] * y[i];
}
// Where a fused relu let nothing through, its gradient is zero.
template <typename T>
void mask(int64_t n, const T* output, T* gradient) {
  for (int64_t i = 0; i < n; ++i)
    if (!(output[i] > T(0))) gradient[i] = T(0);
}

}  // namespace

template <typename T>
Derivatives<T>::Derivatives(const Program<T>& program, const T* theta, const Parallel& parallel)
    : program_(program), groups_(std::min(kGroups, program.tiles_)) {
  const Program<T>& p = program_;
  check();
  for (const int64_t features : p.slots_) {
    row_.push_back(rows_);
    rows_ += features;
  }
  const int64_t size = p.tiles_ * rows_ * p.tile_;
  values_ = Buffer<T>(size), adjoints_ = Buffer<T>(size);
  first_ = Buffer<T>(size), second_ = Buffer<T>(size);
  fill(theta, true, theta_);

  std::vector<double> partial(groups_ * p.n_), losses(groups_);
  Items(groups_, parallel, {}).run([&](int, int64_t group) {
    std::vector<double> terms(p.tile_);
    for (int64_t t = group_begin(group); t < group_begin(group + 1); ++t) {
      forward(t);
      cpu::Targets targets;
      const int64_t at = t * p.target_rows_ * p.tile_;
      if (p.index_.size() > 0) targets.index = p.index_.data() + at;
      if (p.dense_.size() > 0) targets.dense = p.dense_.data() + at;
      const int64_t cols = p.padded_columns(t), samples = p.tile_columns(t);
      const T* outputs = value(t, p.output_);
      p.kernels_.loss(p.loss_, targets, cols, outputs, terms.data(), nullptr);
      losses[group] += std::accumulate(terms.begin(), terms.begin() + samples, 0.0);
      T* seed = adjoint(t, p.output_);
      p.kernels_.loss_gradient(p.loss_, targets, cols, outputs, seed);
      for (int64_t f = 0; f < p.slots_[p.output_]; ++f)
        std::fill(seed + f * cols + samples, seed + (f + 1) * cols, T(0));
      backward(t, partial.data() + group * p.n_);
    }
  });
  loss_ = std::accumulate(losses.begin(), losses.end(), 0.0);
  gradient_.assign(p.n_, 0.0);
  for (int64_t g = 0; g < groups_; ++g) add(p.n_, partial.data() + g * p.n_, gradient_.data());
}

template <typename T>
void Derivatives<T>::check() const {
  const Program<T>& p = program_;
  T zeros[16] = {}, first[16], second[16];
  for (const Op& op : p.ops_) {
    const bool known =
        op.kind == OpKind::kLinear || op.kind == OpKind::kConcat ||
        (op.kind == OpKind::kUnary &&
         p.kernels_.unary_derivatives(op.unary, op.a, op.b, p.kernels_.vector_length, zeros, first,
                                      second)) ||
        (op.kind == OpKind::kBinary && op.binary != cpu::Binary::kDiv);
    if (!known) throw std::domain_error("an op of this program has no compiled derivative");
  }
  cpu::Targets targets;
  targets.index = p.index_.data(), targets.dense = p.dense_.data();
  if (!p.kernels_.loss_gradient(p.loss_, targets, 0, zeros, first))
    throw std::domain_error("this loss has no compiled derivative");
}

// Parameters of one vector, in panels and in panels of the transposed matrices.
template <typename T>
void Derivatives<T>::fill(const T* vector, bool constants, Weights& weights) const {
  const Program<T>& p = program_;
  weights.packed = Buffer<T>(p.packed_size_);
  weights.transposed = Buffer<T>(p.packed_size_);
  std::vector<T> turned;
  for (const Use& use : p.uses_) {
    const T* fixed = constants ? p.constants_.data() : nullptr;
    p.pack(use, vector, fixed, weights.packed.data() + use.packed);
    const T* source = use.source >= 0 ? vector + use.source
                      : fixed != nullptr ? fixed + (-1 - use.source) : nullptr;
    if (!use.panels || source == nullptr) continue;
    turned.resize(use.size());
    for (int64_t r = 0; r < use.rows; ++r)
      for (int64_t c = 0; c < use.cols; ++c) turned[c * use.rows + r] = source[r * use.cols + c];
    p.kernels_.pack(use.cols, use.rows, turned.data(), weights.transposed.data() + use.packed);
  }
}

template <typename T>
const T* Derivatives<T>::value(int64_t tile, int slot) const {
  const Program<T>& p = program_;
  if (slot == 0) return p.x_.data() + tile * p.slots_[0] * p.tile_;
  return values_.data() + (tile * rows_ + row_[slot]) * p.tile_;
}
template <typename T>
T* Derivatives<T>::adjoint(int64_t tile, int slot) const {
  return adjoints_.data() + (tile * rows_ + row_[slot]) * program_.tile_;
}

template <typename T>
void Derivatives<T>::forward(int64_t t) {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  const int64_t cols = p.padded_columns(t);
  for (const Op& op : p.ops_) {
    const int64_t at = (t * rows_ + row_[op.output]) * p.tile_;
    const int64_t size = p.slots_[op.output] * cols;
    T* y = values_.data() + at;
    switch (op.kind) {
      case OpKind::kLinear: {
        const T* bias =
            op.bias < 0 ? nullptr : theta_.packed.data() + p.uses_[op.bias].packed;
        for (int64_t o = 0; o < op.outer; ++o)
          kernels.linear(op.m, cols, op.k, theta_.packed.data() + p.uses_[op.weight].packed,
                         value(t, op.inputs[0]) + o * op.k * cols, bias, op.relu,
                         y + o * op.m * cols);
        break;
      }
      case OpKind::kUnary:
        kernels.unary(op.unary, op.a, op.b, size, value(t, op.inputs[0]), y);
        kernels.unary_derivatives(op.unary, op.a, op.b, size, value(t, op.inputs[0]),
                                  first_.data() + at, second_.data() + at);
        break;
      case OpKind::kBinary:
        kernels.binary(op.binary, size, value(t, op.inputs[0]), value(t, op.inputs[1]), y);
        break;
      case OpKind::kConcat:
        for (int64_t o = 0; o < op.outer; ++o)
          for (const int s : op.inputs) {
            const int64_t part = p.slots_[s] / op.outer * cols;
            y = std::copy_n(value(t, s) + o * part, part, y);
          }
        break;
      default: break;
    }
  }
}

// gradient += dy x^T at the weight, dy summed over the columns at the bias.
template <typename T>
void Derivatives<T>::add_parameter_products(const Op& op, int64_t cols, const T* dy, const T* x,
                                            double* gradient) const {
  const Program<T>& p = program_;
  const int64_t weight = p.uses_[op.weight].source;
  if (weight >= 0)
    for (int64_t o = 0; o < op.outer; ++o)
      p.kernels_.outer_add(op.m, op.k, cols, dy + o * op.m * cols, x + o * op.k * cols,
                           gradient + weight);
}

namespace {

template <typename T>
void add_bias_sums(const Op& op, int64_t source, int64_t cols, const T* dy, double* gradient) {
  if (source < 0) return;
  for (int64_t o = 0; o < op.outer; ++o)
    for (int64_t r = 0; r < op.m; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < cols; ++c) sum += double(dy[(o * op.m + r) * cols + c]);
      gradient[source + r] += sum;
    }
}

}  // namespace

template <typename T>
void Derivatives<T>::backward(int64_t t, double* gradient) {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  const int64_t cols = p.padded_columns(t);
  for (size_t i = p.ops_.size(); i-- > 0;) {
    const Op& op = p.ops_[i];
    const int64_t size = p.slots_[op.output] * cols;
    T* dy = adjoint(t, op.output);
    const int x = op.inputs[0];
    switch (op.kind) {
      case OpKind::kLinear:
        if (op.relu) mask(size, value(t, op.output), dy);
        add_parameter_products(op, cols, dy, value(t, x), gradient);
        if (op.bias >= 0) add_bias_sums(op, p.uses_[op.bias].source, cols, dy, gradient);
        for (int64_t o = 0; x != 0 && o < op.outer; ++o)
          kernels.linear_add(op.k, cols, op.m, theta_.transposed.data() + p.uses_[op.weight].packed,
                             dy + o * op.m * cols, adjoint(t, x) + o * op.k * cols);
        break;
      case OpKind::kUnary:
        add_product(size, first_.data() + (t * rows_ + row_[op.output]) * p.tile_, dy,
                    adjoint(t, x));
        break;
      case OpKind::kBinary: {
        const int y = op.inputs[1];
        if (op.binary == cpu::Binary::kMul) {
          add_product(size, value(t, y), dy, adjoint(t, x));
          add_product(size, value(t, x), dy, adjoint(t, y));
        } else {
          const T sign = op.binary == cpu::Binary::kAdd ? T(1) : T(-1);
          T *dx = adjoint(t, x), *dz = adjoint(t, y);
          add(size, dy, dx);
          for (int64_t j = 0; j < size; ++j) dz[j] += sign * dy[j];
        }
        break;
      }
      case OpKind::kConcat:
        for (int64_t o = 0; o < op.outer; ++o)
          for (const int s : op.inputs) {
            const int64_t part = p.slots_[s] / op.outer * cols;
            add(part, dy, adjoint(t, s) + o * part);
            dy += part;
          }
        break;
      default: break;
    }
  }
}

// R-operator, forward: tangent of every value along v. The input's tangent is zero.
template <typename T>
void Derivatives<T>::tangent_forward(int64_t t, const Weights& v, Tangent& tangent) const {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  const int64_t cols = p.padded_columns(t);
  const auto place = [&](int slot) { return tangent.values.data() + row_[slot] * p.tile_; };
  std::fill_n(place(0), p.slots_[0] * cols, T(0));
  for (const Op& op : p.ops_) {
    const int64_t size = p.slots_[op.output] * cols;
    const int x = op.inputs[0];
    T* ry = place(op.output);
    switch (op.kind) {
      case OpKind::kLinear: {
        // Ry = V x + v_b + W Rx
        const int64_t packed = p.uses_[op.weight].packed;
        const T* bias = op.bias < 0 ? nullptr : v.packed.data() + p.uses_[op.bias].packed;
        for (int64_t o = 0; o < op.outer; ++o) {
          T* out = ry + o * op.m * cols;
          kernels.linear(op.m, cols, op.k, v.packed.data() + packed,
                         value(t, x) + o * op.k * cols, bias, false, out);
          if (x != 0)
            kernels.linear_add(op.m, cols, op.k, theta_.packed.data() + packed,
                               place(x) + o * op.k * cols, out);
        }
        if (op.relu) mask(size, value(t, op.output), ry);
        break;
      }
      case OpKind::kUnary:
        kernels.binary(cpu::Binary::kMul, size,
                       first_.data() + (t * rows_ + row_[op.output]) * p.tile_, place(x), ry);
        break;
      case OpKind::kBinary: {
        const int y = op.inputs[1];
        if (op.binary == cpu::Binary::kMul) {
          kernels.binary(cpu::Binary::kMul, size, place(x), value(t, y), ry);
          add_product(size, value(t, x), place(y), ry);
        } else {
          kernels.binary(op.binary, size, place(x), place(y), ry);
        }
        break;
      }
      case OpKind::kConcat:
        for (int64_t o = 0; o < op.outer; ++o)
          for (const int s : op.inputs) {
            const int64_t part = p.slots_[s] / op.outer * cols;
            ry = std::copy_n(place(s) + o * part, part, ry);
          }
        break;
      default: break;
    }
  }
}

// R-operator, backward: tangent of every adjoint along v; out (n,) += H v of this tile.
template <typename T>
void Derivatives<T>::tangent_backward(int64_t t, const Weights& v, Tangent& tangent,
                                      double* out) const {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  const int64_t cols = p.padded_columns(t), samples = p.tile_columns(t);
  const auto moved = [&](int slot) { return tangent.values.data() + row_[slot] * p.tile_; };
  const auto place = [&](int slot) { return tangent.adjoints.data() + row_[slot] * p.tile_; };
  std::fill_n(tangent.adjoints.data(), rows_ * p.tile_, T(0));
  cpu::Targets targets;
  const int64_t target_at = t * p.target_rows_ * p.tile_;
  if (p.index_.size() > 0) targets.index = p.index_.data() + target_at;
  if (p.dense_.size() > 0) targets.dense = p.dense_.data() + target_at;
  kernels.loss_hvp(p.loss_, targets, cols, value(t, p.output_), moved(p.output_),
                   place(p.output_));
  for (int64_t f = 0; f < p.slots_[p.output_]; ++f)
    std::fill(place(p.output_) + f * cols + samples, place(p.output_) + (f + 1) * cols, T(0));

  for (size_t i = p.ops_.size(); i-- > 0;) {
    const Op& op = p.ops_[i];
    const int64_t size = p.slots_[op.output] * cols;
    const int x = op.inputs[0];
    const T* dy = adjoint(t, op.output);
    T* rdy = place(op.output);
    switch (op.kind) {
      case OpKind::kLinear: {
        // R(dW) = R(dy) x^T + dy Rx^T; R(dx) = W^T R(dy) + V^T dy. dy is masked already.
        if (op.relu) mask(size, value(t, op.output), rdy);
        add_parameter_products(op, cols, rdy, value(t, x), out);
        if (x != 0) add_parameter_products(op, cols, dy, moved(x), out);
        if (op.bias >= 0) add_bias_sums(op, p.uses_[op.bias].source, cols, rdy, out);
        const int64_t packed = p.uses_[op.weight].packed;
        for (int64_t o = 0; x != 0 && o < op.outer; ++o) {
          T* rdx = place(x) + o * op.k * cols;
          kernels.linear_add(op.k, cols, op.m, theta_.transposed.data() + packed,
                             rdy + o * op.m * cols, rdx);
          kernels.linear_add(op.k, cols, op.m, v.transposed.data() + packed,
                             dy + o * op.m * cols, rdx);
        }
        break;
      }
      case OpKind::kUnary: {
        // R(dx) = f' R(dy) + f'' Rx dy
        const int64_t at = (t * rows_ + row_[op.output]) * p.tile_;
        const T *first = first_.data() + at, *second = second_.data() + at, *rx = moved(x);
        T* rdx = place(x);
        for (int64_t j = 0; j < size; ++j) rdx[j] += first[j] * rdy[j] + second[j] * rx[j] * dy[j];
        break;
      }
      case OpKind::kBinary: {
        const int y = op.inputs[1];
        if (op.binary == cpu::Binary::kMul) {
          add_product(size, value(t, y), rdy, place(x));
          add_product(size, moved(y), dy, place(x));
          add_product(size, value(t, x), rdy, place(y));
          add_product(size, moved(x), dy, place(y));
        } else {
          const T sign = op.binary == cpu::Binary::kAdd ? T(1) : T(-1);
          T *rdx = place(x), *rdz = place(y);
          add(size, rdy, rdx);
          for (int64_t j = 0; j < size; ++j) rdz[j] += sign * rdy[j];
        }
        break;
      }
      case OpKind::kConcat:
        for (int64_t o = 0; o < op.outer; ++o)
          for (const int s : op.inputs) {
            const int64_t part = p.slots_[s] / op.outer * cols;
            add(part, rdy, place(s) + o * part);
            rdy += part;
          }
        break;
      default: break;
    }
  }
}

template <typename T>
bool Derivatives<T>::hvp(int64_t k, const T* vectors, double* out, const Parallel& parallel,
                         const ShouldStop& stop) const {
  const Program<T>& p = program_;
  std::vector<Tangent> tangents(parallel.workers);
  for (int64_t start = 0; start < k; start += kVectorBlock) {
    const int64_t count = std::min(kVectorBlock, k - start);
    std::vector<Weights> weights(count);
    std::vector<double> partial(count * groups_ * p.n_);
    Items(count, parallel, {}).run(
        [&](int, int64_t j) { fill(vectors + (start + j) * p.n_, false, weights[j]); });
    const bool done = Items(count * groups_, parallel, stop).run([&](int worker, int64_t item) {
      Tangent& tangent = tangents[worker];
      if (tangent.values.size() == 0) {
        tangent.values = Buffer<T>(rows_ * p.tile_);
        tangent.adjoints = Buffer<T>(rows_ * p.tile_);
      }
      const int64_t group = item % groups_;
      for (int64_t t = group_begin(group); t < group_begin(group + 1); ++t) {
        tangent_forward(t, weights[item / groups_], tangent);
        tangent_backward(t, weights[item / groups_], tangent, partial.data() + item * p.n_);
      }
    });
    if (!done) return false;
    for (int64_t j = 0; j < count; ++j) {
      double* row = out + (start + j) * p.n_;
      std::fill_n(row, p.n_, 0.0);
      for (int64_t g = 0; g < groups_; ++g)
        add(p.n_, partial.data() + (j * groups_ + g) * p.n_, row);
    }
  }
  return true;
}

template class Derivatives<float>;
template class Derivatives<double>;

}  // namespace pylandscape
