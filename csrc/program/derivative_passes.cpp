// The passes of Derivatives over the ops of one tile. dy: adjoint of y; a leading r: tangent.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "program/derivatives.h"
#include "program/op_parts.h"

namespace pylandscape {
namespace {

// db[m] += the sums over pixels and columns of dy.
template <typename T>
void pixel_sums_add(const cpu::ConvArgs& a, const cpu::Kernels<T>& kernels, int64_t cols,
                    const T* dy, double* db) {
  const int64_t features = a.groups * a.rows;
  for (int64_t p = 0; p < a.out_h * a.out_w; ++p)
    kernels.row_sums_add(features, cols, dy + p * features * cols, db);
}

// The gradient of a linear weight (m, k): summed where it belongs, or, where the parameter holds the
// transpose, in rows of its own that are added transposed at the end.
class WeightSums {
 public:
  WeightSums(const Op& op, bool transposed, double* to)
      : m_(op.m), k_(op.k), to_(to), own_(transposed && to != nullptr ? op.m * op.k : 0) {}
  double* data() { return own_.empty() ? to_ : own_.data(); }
  void finish() {
    for (size_t i = 0; i < own_.size(); ++i) to_[i % k_ * m_ + i / k_] += own_[i];
  }

 private:
  int64_t m_, k_;
  double* to_;
  std::vector<double> own_;
};

}  // namespace

template <typename T>
Channels<T> Derivatives<T>::channels(const Op& op) const {
  const T *gain = packed(theta_, op.norm.gain), *shift = packed(theta_, op.norm.shift);
  const T *mean = packed(theta_, op.norm.mean), *variance = packed(theta_, op.norm.variance);
  Channels<T> a(op.k);
  for (int64_t c = 0; c < op.k; ++c) {
    const double inverse = 1 / std::sqrt(variance[c] + op.norm.eps);
    const double scale = gain != nullptr ? gain[c] * inverse : inverse;
    a.inverse[c] = static_cast<T>(inverse), a.centre[c] = static_cast<T>(-mean[c] * inverse);
    a.scale[c] = static_cast<T>(scale);
    a.shift[c] = static_cast<T>((shift != nullptr ? shift[c] : 0.0) - mean[c] * scale);
  }
  return a;
}

// Tangents of scale and shift along v.
template <typename T>
Channels<T> Derivatives<T>::channels_along(const Op& op, const Vector& v) const {
  Channels<T> a = channels(op);
  for (int64_t c = 0; c < op.k; ++c) {
    const T gain = in_theta(op.norm.gain) ? packed(v, op.norm.gain)[c] : T(0);
    a.scale[c] = gain * a.inverse[c];
    a.shift[c] = gain * a.centre[c] + (in_theta(op.norm.shift) ? packed(v, op.norm.shift)[c] : T(0));
  }
  return a;
}

// dgain += sum dy xhat, dshift += sum dy.
template <typename T>
void Derivatives<T>::norm_sums_add(const Op& op, const Channels<T>& a, int64_t cols, const T* x,
                                   const T* dy, double* gradient) const {
  if (gradient == nullptr) return;
  if (double* to = target(op.norm.gain, gradient))
    kernels_.channel_dots(op.outer, op.k, cols, a.inverse.data(), a.centre.data(), x, dy, to);
  if (double* to = target(op.norm.shift, gradient))
    for (int64_t p = 0; p < op.outer; ++p)
      kernels_.row_sums_add(op.k, cols, dy + p * op.k * cols, to);
}

template <typename T>
const T* Derivatives<T>::value(int64_t tile, const Primal& primal, int slot) const {
  const Program<T>& p = program_;
  return slot == 0 ? p.x_.data() + tile * p.slots_[0] * p.tile_
                   : primal.values.data() + row_[slot] * p.tile_;
}

template <typename T>
cpu::Targets Derivatives<T>::targets(int64_t tile) const {
  const Program<T>& p = program_;
  const int64_t at = tile * p.target_rows_ * p.tile_;
  cpu::Targets found;
  if (p.index_.size() > 0) found.index = p.index_.data() + at;
  if (p.dense_.size() > 0) found.dense = p.dense_.data() + at;
  return found;
}

template <typename T>
cpu::CellInputs<const T> Derivatives<T>::cell_values(int64_t t, const Primal& primal,
                                                     const Op& op) const {
  const int64_t at = op.first(2) * program_.padded_columns(t);
  return {value(t, primal, op.inputs[0]), value(t, primal, op.inputs[1]),
          value(t, primal, op.inputs[2]) + at};
}
template <typename T>
cpu::CellInputs<T> Derivatives<T>::cell_inputs(const Buffer<T>& rows, const Op& op,
                                               int64_t cols) const {
  T* state = at(rows, op.inputs[2]);
  return {at(rows, op.inputs[0]), at(rows, op.inputs[1]),
          state == nullptr ? nullptr : state + op.first(2) * cols};
}
template <typename T>
cpu::CellInputs<const T> Derivatives<T>::cell_tangents(const Buffer<T>& rows, const Op& op,
                                                       int64_t cols) const {
  const cpu::CellInputs<T> r = cell_inputs(rows, op, cols);
  return {r.x, r.h, r.state};
}

// The adjoint of an embedding: the table's rows += those of dy, but for the padding.
template <typename T>
void Derivatives<T>::add_to_table(int64_t t, const Op& op, const T* dy, double* dw) const {
  const int64_t cols = program_.padded_columns(t), samples = program_.tile_columns(t);
  const T* ids = program_.x_.data() + t * program_.slots_[0] * program_.tile_;
  for (size_t i = 0; dw != nullptr && i < op.index.size(); ++i, dy += op.k * cols)
    kernels_.embedding_add(op.k, cols, samples, static_cast<int64_t>(op.b),
                           ids + op.index[i] * cols, dy, dw);
}

// A padding column weighs nothing: with a zero seed, all of its adjoints are zero.
template <typename T>
void Derivatives<T>::clear_padding(int64_t tile, T* seed) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(tile), samples = p.tile_columns(tile);
  for (int64_t f = 0; f < p.slots_[p.output_]; ++f)
    std::fill(seed + f * cols + samples, seed + (f + 1) * cols, T(0));
}

template <typename T>
double Derivatives<T>::primal(int64_t t, Primal& to, double* gradient) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  forward(t, to);
  std::vector<double> terms(cols);
  const T* outputs = value(t, to, p.output_);
  kernels_.loss(p.loss_, targets(t), cols, outputs, terms.data(), nullptr);
  const double loss =
      std::accumulate(terms.begin(), terms.begin() + p.tile_columns(t), 0.0);
  std::fill_n(to.adjoints.data(), to.adjoints.size(), T(0));
  T* seed = at(to.adjoints, p.output_);
  if (seed == nullptr) return loss;  // no parameter reaches the output
  kernels_.loss_gradient(p.loss_, targets(t), cols, outputs, seed);
  clear_padding(t, seed);
  reverse(t, to, to.adjoints, to.panels.data(), gradient);
  for (const Op& op : p.ops_) {  // f'' dy, which a tangent meets again and again
    if (op.kind != OpKind::kUnary || !moves_[op.output]) continue;
    T* curved = bent(to.curved, op.output);
    kernels_.binary(cpu::Binary::kMul, p.slots_[op.output] * cols, curved,
                    at(to.adjoints, op.output), curved);
  }
  return loss;
}

template <typename T>
void Derivatives<T>::forward(int64_t t, Primal& to) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  for (size_t i = 0; i < p.ops_.size(); ++i) {
    const Op& op = p.ops_[i];
    const int64_t start = row_[op.output] * p.tile_, size = p.slots_[op.output] * cols;
    const T* x = op.inputs.empty() ? nullptr : value(t, to, op.inputs[0]);
    const T *w = packed(theta_, op.weight), *b = packed(theta_, op.bias);
    T* y = to.values.data() + start;
    const int64_t first = op.first(0) * cols;
    switch (op.kind) {
      case OpKind::kLinear:
        for (int64_t o = 0; o < op.outer; ++o)
          kernels_.linear(op.m, cols, op.k, w, x + first + o * op.k * cols, b, op.relu,
                          y + o * op.m * cols);
        if (columns_at_[i] >= 0) {
          const int64_t width = 2 * kernels_.vector_length;
          const int64_t step = (op.k + width - 1) / width * width * cols;
          for (int64_t o = 0; o < op.outer; ++o)
            kernels_.pack_columns(op.k, cols, x + first + o * op.k * cols,
                                  to.columns.data() + columns_at_[i] + o * step);
        }
        break;
      case OpKind::kUnary:
        kernels_.unary(op.unary, op.a, op.b, size, x, y);
        if (moves_[op.output])
          kernels_.unary_derivatives(op.unary, op.a, op.b, size, x, bent(to.first, op.output),
                                     bent(to.curved, op.output));
        break;
      case OpKind::kBinary:
        kernels_.binary(op.binary, size, x, value(t, to, op.inputs[1]), y);
        if (op.relu) kernels_.unary(cpu::Unary::kRelu, 0, 0, size, y, y);
        break;
      case OpKind::kLayerNorm:
        kernels_.layer_norm(op.outer, op.k, cols, op.a, w, b, x, y);
        break;
      case OpKind::kSoftmax:
        kernels_.softmax(op.log, op.outer, op.k, op.inner, cols, x, y);
        break;
      case OpKind::kConcat:
        each_part(op, p.slots_, [&](int slot, int64_t from, int64_t offset, int64_t rows) {
          std::copy_n(value(t, to, slot) + from * cols, rows * cols, y + offset * cols);
        });
        break;
      case OpKind::kExpand:
        for (int64_t f = 0; f < p.slots_[op.output]; ++f)
          std::fill_n(y + f * cols, cols, w[op.index[f]]);
        break;
      case OpKind::kGather: gather_rows(op.index, cols, static_cast<T>(op.a), x, y); break;
      case OpKind::kConv:
        kernels_.conv(op.conv, cols, w, x, {nullptr, b, nullptr, op.relu}, y);
        if (columns_at_[i] >= 0)
          kernels_.pack_pixels(op.conv.in_h * op.conv.in_w, op.conv.groups * op.conv.channels, cols,
                               x, to.columns.data() + columns_at_[i]);
        break;
      case OpKind::kBatchNorm: {
        const Channels<T> a = channels(op);
        kernels_.channel_affine(op.outer, op.k, cols, a.scale.data(), a.shift.data(), op.relu, x, y);
        break;
      }
      case OpKind::kGroupNorm:
        kernels_.group_norm(op.norm_args(), cols, w, b, op.relu, x, y);
        break;
      case OpKind::kPool: kernels_.pool(op.pool_args(), cols, x, y); break;
      case OpKind::kMatmul:
        kernels_.matmul(op.matmul(), cols, static_cast<T>(op.a), false, x,
                        value(t, to, op.inputs[1]), y);
        break;
      case OpKind::kEmbedding:
        for (size_t i = 0; i < op.index.size(); ++i)
          kernels_.embedding(op.k, cols, -1, w, x + op.index[i] * cols,
                             y + static_cast<int64_t>(i) * op.k * cols);
        break;
      case OpKind::kLookup: break;  // of the loss alone
      case OpKind::kCell:
        kernels_.cell(op.cell, op.k, cols, cell_values(t, to, op), y);
        break;
    }
  }
}

template <typename T>
void Derivatives<T>::reverse(int64_t t, const Primal& primal, const Buffer<T>& adjoints, T* panels,
                             double* gradient) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  for (size_t i = p.ops_.size(); i-- > 0;) {
    const Op& op = p.ops_[i];
    if (!moves_[op.output]) continue;
    const int64_t size = p.slots_[op.output] * cols;
    T* dy = at(adjoints, op.output);
    T* dx = op.inputs.empty() ? nullptr : at(adjoints, op.inputs[0]);
    double* dw = gradient == nullptr ? nullptr : target(op.weight, gradient);
    double* db = gradient == nullptr ? nullptr : target(op.bias, gradient);
    if (op.relu) kernels_.mask(size, value(t, primal, op.output), dy);
    const int64_t first = op.first(0) * cols;
    switch (op.kind) {
      case OpKind::kLinear: {  // dW = dy x^T, db = dy 1, dx = W^T dy
        WeightSums sums(op, p.uses_[op.weight].transposed(), dw);
        const int64_t width = 2 * kernels_.vector_length;
        const int64_t step = (op.k + width - 1) / width * width * cols;
        for (int64_t o = 0; o < op.outer; ++o) {
          const T* d = dy + o * op.m * cols;
          if (panels_at_[i] >= 0) {
            T* to = panels + panels_at_[i] + o * op.m * cols;
            kernels_.pack(op.m, cols, d, to);
            if (dw != nullptr)
              kernels_.outer_add(op.m, op.k, cols, to,
                                 primal.columns.data() + columns_at_[i] + o * step, sums.data());
          }
          if (db != nullptr) kernels_.row_sums_add(op.m, cols, d, db);
          if (dx != nullptr)
            kernels_.linear_add(op.k, cols, op.m,
                                theta_.transposed.data() + p.uses_[op.weight].packed, d,
                                dx + first + o * op.k * cols);
        }
        sums.finish();
        break;
      }
      case OpKind::kUnary:
        kernels_.product_add(size, T(1), bent(primal.first, op.output), dy, dx);
        break;
      case OpKind::kBinary: {
        const int other = op.inputs[1];
        T* dz = at(adjoints, other);
        if (op.binary == cpu::Binary::kDiv) {
          // A side that does not depend on theta gets its adjoint into scratch rows of its own.
          std::vector<T> unused(dx == nullptr || dz == nullptr ? size : 0);
          kernels_.divide_reverse(size, value(t, primal, other), value(t, primal, op.output), dy,
                                  dx != nullptr ? dx : unused.data(),
                                  dz != nullptr ? dz : unused.data());
          break;
        }
        const bool product = op.binary == cpu::Binary::kMul;
        const T sign = op.binary == cpu::Binary::kSub ? T(-1) : T(1);
        if (dx != nullptr)
          kernels_.product_add(size, T(1), dy, product ? value(t, primal, other) : nullptr, dx);
        if (dz != nullptr)
          kernels_.product_add(size, sign, dy, product ? value(t, primal, op.inputs[0]) : nullptr,
                               dz);
        break;
      }
      case OpKind::kLayerNorm: case OpKind::kGroupNorm:
        kernels_.layer_norm_reverse(op.norm_args(), cols, packed(theta_, op.weight),
                                    value(t, primal, op.inputs[0]), dy, dx, dw, db);
        break;
      case OpKind::kSoftmax:
        kernels_.softmax_reverse(softmax_of(op), cols, value(t, primal, op.output), dy, dx);
        break;
      case OpKind::kConcat:
        each_part(op, p.slots_, [&](int slot, int64_t from, int64_t offset, int64_t rows) {
          T* to = at(adjoints, slot);
          if (to == nullptr) return;
          kernels_.product_add(rows * cols, T(1), dy + offset * cols, nullptr, to + from * cols);
        });
        break;
      case OpKind::kExpand:
        for (int64_t f = 0; dw != nullptr && f < p.slots_[op.output]; ++f)
          kernels_.row_sums_add(1, cols, dy + f * cols, dw + op.index[f]);
        break;
      case OpKind::kGather: scatter_add(op, kernels_, cols, dy, dx); break;
      case OpKind::kConv:
        if (dw != nullptr)
          kernels_.conv_outer_add(op.conv, cols, dy, primal.columns.data() + columns_at_[i], dw);
        if (db != nullptr) pixel_sums_add(op.conv, kernels_, cols, dy, db);
        if (dx != nullptr) kernels_.conv_reverse(op.conv, cols, transposed(theta_, op), dy, dx);
        break;
      case OpKind::kBatchNorm: {
        const Channels<T> a = channels(op);
        norm_sums_add(op, a, cols, value(t, primal, op.inputs[0]), dy, gradient);
        if (dx != nullptr)
          kernels_.channel_affine_add(op.outer, op.k, cols, a.scale.data(), nullptr, dy, dx);
        break;
      }
      case OpKind::kPool:
        kernels_.pool_reverse(op.pool_args(), cols, value(t, primal, op.inputs[0]), dy, dx);
        break;
      case OpKind::kMatmul: {
        const T scale = static_cast<T>(op.a);
        T* dz = at(adjoints, op.inputs[1]);
        if (dx != nullptr)
          kernels_.matmul(matmul_dx(op), cols, scale, true, dy, value(t, primal, op.inputs[1]), dx);
        if (dz != nullptr)
          kernels_.matmul(matmul_dy(op), cols, scale, true, value(t, primal, op.inputs[0]), dy, dz);
        break;
      }
      case OpKind::kEmbedding: add_to_table(t, op, dy, dw); break;
      case OpKind::kLookup: break;  // of the loss alone
      case OpKind::kCell:
        kernels_.cell_reverse(op.cell, op.k, cols, cell_values(t, primal, op), dy,
                              cell_inputs(adjoints, op, cols));
        break;
    }
  }
}

// R-operator, forward: the tangent of every value along v.
template <typename T>
void Derivatives<T>::tangent_forward(int64_t t, const Primal& primal, const Vector& v,
                                     const Tangents& to) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  for (const Op& op : p.ops_) {
    if (!moves_[op.output]) continue;
    const int64_t size = p.slots_[op.output] * cols;
    const int x = op.inputs.empty() ? -1 : op.inputs[0];
    const T* rx = x < 0 ? nullptr : at(to.values, x);
    const T* rw = in_theta(op.weight) ? packed(v, op.weight) : nullptr;
    const T* rb = in_theta(op.bias) ? packed(v, op.bias) : nullptr;
    T* ry = at(to.values, op.output);
    const int64_t first = op.first(0) * cols;
    switch (op.kind) {
      case OpKind::kLinear:  // Ry = V x + W Rx + Rb
        for (int64_t o = 0; o < op.outer; ++o) {
          T* out = ry + o * op.m * cols;
          const T* w = packed(theta_, op.weight);
          if (rw != nullptr)
            kernels_.linear(op.m, cols, op.k, rw, value(t, primal, x) + first + o * op.k * cols, rb,
                            false, out);
          if (rx == nullptr && rw == nullptr)
            for (int64_t r = 0; r < op.m; ++r)
              std::fill_n(out + r * cols, cols, rb != nullptr ? rb[r] : T(0));
          if (rx != nullptr && rw != nullptr)
            kernels_.linear_add(op.m, cols, op.k, w, rx + first + o * op.k * cols, out);
          if (rx != nullptr && rw == nullptr)
            kernels_.linear(op.m, cols, op.k, w, rx + first + o * op.k * cols, rb, false, out);
        }
        break;
      case OpKind::kUnary:
        kernels_.binary(cpu::Binary::kMul, size, bent(primal.first, op.output), rx, ry);
        break;
      case OpKind::kBinary: {
        const int other = op.inputs[1];
        const T* rz = at(to.values, other);
        if (op.binary == cpu::Binary::kDiv) {
          kernels_.divide_tangent(size, value(t, primal, other), value(t, primal, op.output), rx,
                                  rz, ry);
          break;
        }
        const bool product = op.binary == cpu::Binary::kMul;
        const T sign = op.binary == cpu::Binary::kSub ? T(-1) : T(1);
        std::fill_n(ry, size, T(0));
        if (rx != nullptr)
          kernels_.product_add(size, T(1), rx, product ? value(t, primal, other) : nullptr, ry);
        if (rz != nullptr)
          kernels_.product_add(size, sign, rz, product ? value(t, primal, x) : nullptr, ry);
        break;
      }
      case OpKind::kLayerNorm: case OpKind::kGroupNorm:
        kernels_.layer_norm_tangent(op.norm_args(), cols, packed(theta_, op.weight),
                                    value(t, primal, x), rx, rw, rb, ry);
        break;
      case OpKind::kSoftmax:
        kernels_.softmax_tangent(softmax_of(op), cols, value(t, primal, op.output), rx, ry);
        break;
      case OpKind::kConcat:
        each_part(op, p.slots_, [&](int slot, int64_t from, int64_t offset, int64_t rows) {
          const T* r = at(to.values, slot);
          T* out = ry + offset * cols;
          if (r != nullptr) std::copy_n(r + from * cols, rows * cols, out);
          else std::fill_n(out, rows * cols, T(0));
        });
        break;
      case OpKind::kExpand:
        for (int64_t f = 0; f < p.slots_[op.output]; ++f)
          std::fill_n(ry + f * cols, cols, rw[op.index[f]]);
        break;
      case OpKind::kGather: gather_rows(op.index, cols, T(0), rx, ry); break;
      case OpKind::kConv: {  // Ry = V x + W Rx + Rb
        cpu::Epilogue<T> e{nullptr, rb, nullptr, false};
        if (rw == nullptr && rx == nullptr) {
          for (int64_t f = 0; f < p.slots_[op.output]; ++f)
            std::fill_n(ry + f * cols, cols, rb[f % (op.conv.groups * op.conv.rows)]);
          break;
        }
        if (rw != nullptr) {
          kernels_.conv(op.conv, cols, rw, value(t, primal, x), e, ry);
          e.shift = nullptr, e.add = ry;
        }
        if (rx != nullptr) kernels_.conv(op.conv, cols, packed(theta_, op.weight), rx, e, ry);
        break;
      }
      case OpKind::kBatchNorm: {  // Ry = s Rx + Rgain xhat + Rshift
        const Channels<T> a = channels(op), r = channels_along(op, v);
        kernels_.channel_affine(op.outer, op.k, cols, r.scale.data(), r.shift.data(), false,
                                value(t, primal, x), ry);
        if (rx != nullptr)
          kernels_.channel_affine_add(op.outer, op.k, cols, a.scale.data(), nullptr, rx, ry);
        break;
      }
      case OpKind::kPool:
        kernels_.pool_tangent(op.pool_args(), cols, value(t, primal, x), rx, ry);
        break;
      case OpKind::kMatmul: {  // R(x y) = Rx y + x Ry
        const T scale = static_cast<T>(op.a);
        const T* rz = at(to.values, op.inputs[1]);
        if (rx != nullptr)
          kernels_.matmul(op.matmul(), cols, scale, false, rx, value(t, primal, op.inputs[1]), ry);
        if (rz != nullptr)
          kernels_.matmul(op.matmul(), cols, scale, rx != nullptr, value(t, primal, x), rz, ry);
        break;
      }
      case OpKind::kEmbedding:
        for (size_t i = 0; i < op.index.size(); ++i)
          kernels_.embedding(op.k, cols, static_cast<int64_t>(op.b), rw,
                             value(t, primal, 0) + op.index[i] * cols,
                             ry + static_cast<int64_t>(i) * op.k * cols);
        break;
      case OpKind::kLookup: break;  // of the loss alone
      case OpKind::kCell:
        kernels_.cell_tangent(op.cell, op.k, cols, cell_values(t, primal, op),
                              cell_tangents(to.values, op, cols), ry);
        break;
    }
    if (op.relu) kernels_.mask(size, value(t, primal, op.output), ry);
  }
}

// R-operator, backward: the tangent of every adjoint along v, from the output's; out (n,) += H v.
template <typename T>
void Derivatives<T>::tangent_reverse(int64_t t, const Primal& primal, const Vector& v,
                                     const Tangents& tangents, const Work& work,
                                     double* out) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  for (size_t i = p.ops_.size(); i-- > 0;) {
    const Op& op = p.ops_[i];
    if (!moves_[op.output]) continue;
    const int64_t size = p.slots_[op.output] * cols;
    const int x = op.inputs.empty() ? -1 : op.inputs[0];
    const T* dy = at(primal.adjoints, op.output);
    const T* rx = x < 0 ? nullptr : at(tangents.values, x);
    T* rdy = at(tangents.adjoints, op.output);
    T* rdx = x < 0 ? nullptr : at(tangents.adjoints, x);
    double *rdw = target(op.weight, out), *rdb = target(op.bias, out);
    if (op.relu) kernels_.mask(size, value(t, primal, op.output), rdy);  // dy is masked already
    const int64_t first = op.first(0) * cols;
    switch (op.kind) {
      case OpKind::kLinear: {
        // R(dW) = R(dy) x^T + dy Rx^T; R(dx) = W^T R(dy) + V^T dy.
        WeightSums sums(op, p.uses_[op.weight].transposed(), rdw);
        const int64_t width = 2 * kernels_.vector_length;
        const int64_t step = (op.k + width - 1) / width * width * cols;
        for (int64_t o = 0; o < op.outer; ++o) {
          const T *d = dy + o * op.m * cols, *rd = rdy + o * op.m * cols;
          if (rdw != nullptr) {
            T *panels = work.panels.data(), *columns = work.columns.data();
            kernels_.pack(op.m, cols, rd, panels);
            kernels_.outer_add(op.m, op.k, cols, panels,
                               primal.columns.data() + columns_at_[i] + o * step, sums.data());
            if (rx != nullptr) {
              kernels_.pack_columns(op.k, cols, rx + first + o * op.k * cols, columns);
              kernels_.outer_add(op.m, op.k, cols,
                                 primal.panels.data() + panels_at_[i] + o * op.m * cols, columns,
                                 sums.data());
            }
          }
          if (rdb != nullptr) kernels_.row_sums_add(op.m, cols, rd, rdb);
          if (rdx == nullptr) continue;
          const int64_t at = p.uses_[op.weight].packed;
          kernels_.linear_add(op.k, cols, op.m, theta_.transposed.data() + at, rd,
                              rdx + first + o * op.k * cols);
          if (rdw != nullptr)
            kernels_.linear_add(op.k, cols, op.m, v.transposed.data() + at, d,
                                rdx + first + o * op.k * cols);
        }
        sums.finish();
        break;
      }
      case OpKind::kUnary:  // R(dx) = f' R(dy) + (f'' dy) Rx
        kernels_.product_add(size, T(1), bent(primal.first, op.output), rdy, rdx);
        kernels_.product_add(size, T(1), bent(primal.curved, op.output), rx, rdx);
        break;
      case OpKind::kBinary: {
        const int other = op.inputs[1];
        const T* rz = at(tangents.values, other);
        T* rdz = at(tangents.adjoints, other);
        if (op.binary == cpu::Binary::kDiv) {
          std::vector<T> unused(rdx == nullptr || rdz == nullptr ? size : 0);
          kernels_.divide_reverse_tangent(size, value(t, primal, other),
                                          value(t, primal, op.output), dy, rz,
                                          at(tangents.values, op.output), rdy,
                                          rdx != nullptr ? rdx : unused.data(),
                                          rdz != nullptr ? rdz : unused.data());
          break;
        }
        const bool product = op.binary == cpu::Binary::kMul;
        const T sign = op.binary == cpu::Binary::kSub ? T(-1) : T(1);
        if (rdx != nullptr) {
          kernels_.product_add(size, T(1), rdy, product ? value(t, primal, other) : nullptr, rdx);
          if (product && rz != nullptr) kernels_.product_add(size, T(1), dy, rz, rdx);
        }
        if (rdz != nullptr) {
          kernels_.product_add(size, sign, rdy, product ? value(t, primal, x) : nullptr, rdz);
          if (product && rx != nullptr) kernels_.product_add(size, T(1), dy, rx, rdz);
        }
        break;
      }
      case OpKind::kLayerNorm: case OpKind::kGroupNorm:
        kernels_.layer_norm_reverse_tangent(
            op.norm_args(), cols, packed(theta_, op.weight),
            in_theta(op.weight) ? packed(v, op.weight) : nullptr, value(t, primal, x), rx, dy, rdy,
            rdx, rdw, rdb);
        break;
      case OpKind::kSoftmax:
        kernels_.softmax_reverse_tangent(softmax_of(op), cols, value(t, primal, op.output),
                                         at(tangents.values, op.output), dy, rdy, rdx);
        break;
      case OpKind::kConcat:
        each_part(op, p.slots_, [&](int slot, int64_t from, int64_t offset, int64_t rows) {
          T* to = at(tangents.adjoints, slot);
          if (to == nullptr) return;
          kernels_.product_add(rows * cols, T(1), rdy + offset * cols, nullptr, to + from * cols);
        });
        break;
      case OpKind::kExpand:
        for (int64_t f = 0; rdw != nullptr && f < p.slots_[op.output]; ++f)
          kernels_.row_sums_add(1, cols, rdy + f * cols, rdw + op.index[f]);
        break;
      case OpKind::kGather: scatter_add(op, kernels_, cols, rdy, rdx); break;
      case OpKind::kConv:  // R(dW) = R(dy) x^T + dy Rx^T; R(dx) = W^T R(dy) + V^T dy
        if (rdw != nullptr) {
          kernels_.conv_outer_add(op.conv, cols, rdy, primal.columns.data() + columns_at_[i], rdw);
          if (rx != nullptr) {
            kernels_.pack_pixels(op.conv.in_h * op.conv.in_w, op.conv.groups * op.conv.channels,
                                 cols, rx, work.columns.data());
            kernels_.conv_outer_add(op.conv, cols, dy, work.columns.data(), rdw);
          }
        }
        if (rdb != nullptr) pixel_sums_add(op.conv, kernels_, cols, rdy, rdb);
        if (rdx == nullptr) break;
        kernels_.conv_reverse(op.conv, cols, transposed(theta_, op), rdy, rdx);
        if (rdw != nullptr) kernels_.conv_reverse(op.conv, cols, transposed(v, op), dy, rdx);
        break;
      case OpKind::kBatchNorm: {  // R(dx) = s R(dy) + Rs dy; R(dgain) = sum R(dy) xhat + dy Rxhat
        const Channels<T> a = channels(op), r = channels_along(op, v);
        norm_sums_add(op, a, cols, value(t, primal, x), rdy, out);
        if (rx != nullptr && in_theta(op.norm.gain)) {
          const std::vector<T> zero(op.k);
          kernels_.channel_dots(op.outer, op.k, cols, a.inverse.data(), zero.data(), rx, dy,
                                target(op.norm.gain, out));
        }
        if (rdx == nullptr) break;
        kernels_.channel_affine_add(op.outer, op.k, cols, a.scale.data(), nullptr, rdy, rdx);
        if (in_theta(op.norm.gain))
          kernels_.channel_affine_add(op.outer, op.k, cols, r.scale.data(), nullptr, dy, rdx);
        break;
      }
      case OpKind::kPool:  // the same windows: linear almost everywhere
        kernels_.pool_reverse(op.pool_args(), cols, value(t, primal, x), rdy, rdx);
        break;
      case OpKind::kMatmul: {
        const int other = op.inputs[1];
        const T scale = static_cast<T>(op.a);
        const T* rz = at(tangents.values, other);
        T* rdz = at(tangents.adjoints, other);
        if (rdx != nullptr)
          kernels_.matmul(matmul_dx(op), cols, scale, true, rdy, value(t, primal, other), rdx);
        if (rdx != nullptr && rz != nullptr)
          kernels_.matmul(matmul_dx(op), cols, scale, true, dy, rz, rdx);
        if (rdz != nullptr)
          kernels_.matmul(matmul_dy(op), cols, scale, true, value(t, primal, x), rdy, rdz);
        if (rdz != nullptr && rx != nullptr)
          kernels_.matmul(matmul_dy(op), cols, scale, true, rx, dy, rdz);
        break;
      }
      case OpKind::kEmbedding: add_to_table(t, op, rdy, rdw); break;
      case OpKind::kLookup: break;  // of the loss alone
      case OpKind::kCell:
        kernels_.cell_reverse_tangent(op.cell, op.k, cols, cell_values(t, primal, op),
                                      cell_tangents(tangents.values, op, cols), dy, rdy,
                                      cell_inputs(tangents.adjoints, op, cols));
        break;
    }
  }
}

template <typename T>
void Derivatives<T>::seed(Matrix matrix, int64_t t, const Primal& primal, const Tangents& tangents,
                          const Work& work) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t), features = p.slots_[p.output_];
  std::fill_n(tangents.adjoints.data(), tangents.adjoints.size(), T(0));
  T* to = at(tangents.adjoints, p.output_);
  const T* moved = at(tangents.values, p.output_);
  if (matrix == Matrix::kCovariance) {  // sum_i (grad l_i) (grad l_i . v)
    const T* slopes = at(primal.adjoints, p.output_);
    kernels_.column_dots(features, cols, slopes, moved, work.dots.data());
    std::copy_n(slopes, features * cols, to);
    kernels_.scale_columns(features, cols, work.dots.data(), to);
    return;
  }
  kernels_.loss_hvp(p.loss_, targets(t), cols, value(t, primal, p.output_), moved, to);
  clear_padding(t, to);
}

template <typename T>
void Derivatives<T>::add_sample_gradients(int64_t t, const Primal& primal, T* out) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t), samples = p.tile_columns(t), n = p.n_;
  for (const Op& op : p.ops_) {
    if (!moves_[op.output]) continue;
    const T* dy = at(primal.adjoints, op.output);
    const int64_t weight = in_theta(op.weight) ? p.uses_[op.weight].source : -1;
    const int64_t bias = in_theta(op.bias) ? p.uses_[op.bias].source : -1;
    const T* x = op.inputs.empty() ? nullptr : value(t, primal, op.inputs[0]);
    if (op.kind == OpKind::kLayerNorm || op.kind == OpKind::kGroupNorm) {
      // Lane by lane through the kernel.
      const int64_t lanes = kernels_.vector_length;
      const int64_t gains = op.kind == OpKind::kGroupNorm ? op.outer * op.k / op.inner : op.k;
      std::vector<double> sums(2 * gains);
      Buffer<T> one(2 * p.slots_[op.output] * lanes);
      for (int64_t c = 0; c < samples; ++c) {
        for (int64_t f = 0; f < p.slots_[op.output]; ++f)
          for (int64_t l = 0; l < lanes; ++l) {
            one.data()[f * lanes + l] = x[f * cols + c];
            one.data()[(p.slots_[op.output] + f) * lanes + l] = l == 0 ? dy[f * cols + c] : T(0);
          }
        std::fill(sums.begin(), sums.end(), 0.0);
        kernels_.layer_norm_reverse(op.norm_args(), lanes, packed(theta_, op.weight), one.data(),
                                    one.data() + p.slots_[op.output] * lanes, nullptr, sums.data(),
                                    sums.data() + gains);
        for (int64_t f = 0; f < gains; ++f) {
          if (weight >= 0) out[c * n + weight + f] += static_cast<T>(sums[f]);
          if (bias >= 0) out[c * n + bias + f] += static_cast<T>(sums[gains + f]);
        }
      }
      continue;
    }
    if (op.kind == OpKind::kConv && weight >= 0) {
      const int64_t weights = p.uses_[op.weight].size();
      Buffer<T> own(weights * cols);
      kernels_.conv_outer_lanes(op.conv, cols, dy, x, own.data());
      for (int64_t c = 0; c < samples; ++c)
        for (int64_t i = 0; i < weights; ++i) out[c * n + weight + i] += own.data()[i * cols + c];
    }
    if (op.kind == OpKind::kConv && bias >= 0) {
      const int64_t features = op.conv.groups * op.conv.rows;
      for (int64_t f = 0; f < p.slots_[op.output]; ++f)
        for (int64_t c = 0; c < samples; ++c) out[c * n + bias + f % features] += dy[f * cols + c];
    }
    if (op.kind == OpKind::kBatchNorm) {
      const Channels<T> a = channels(op);
      const int64_t gain = in_theta(op.norm.gain) ? p.uses_[op.norm.gain].source : -1;
      const int64_t shift = in_theta(op.norm.shift) ? p.uses_[op.norm.shift].source : -1;
      for (int64_t f = 0; f < p.slots_[op.output]; ++f)
        for (int64_t c = 0; c < samples; ++c) {
          const T d = dy[f * cols + c];
          const int64_t k = f % op.k;
          if (gain >= 0) out[c * n + gain + k] += d * (x[f * cols + c] * a.inverse[k] + a.centre[k]);
          if (shift >= 0) out[c * n + shift + k] += d;
        }
    }
    for (int64_t c = 0; c < samples; ++c) {
      T* row = out + c * n;
      if (op.kind == OpKind::kExpand && weight >= 0)
        for (int64_t f = 0; f < p.slots_[op.output]; ++f)
          row[weight + op.index[f]] += dy[f * cols + c];
      if (op.kind == OpKind::kEmbedding && weight >= 0)
        for (size_t i = 0; i < op.index.size(); ++i) {
          const int64_t id = static_cast<int64_t>(x[op.index[i] * cols + c]);
          if (id == static_cast<int64_t>(op.b)) continue;
          for (int64_t f = 0; f < op.k; ++f)
            row[weight + id * op.k + f] += dy[(static_cast<int64_t>(i) * op.k + f) * cols + c];
        }
      if (op.kind != OpKind::kLinear) continue;
      const bool transposed = p.uses_[op.weight].transposed();
      const int64_t row_step = transposed ? 1 : op.k, step = transposed ? op.m : 1;
      for (int64_t o = 0; o < op.outer; ++o)
        for (int64_t r = 0; r < op.m; ++r) {
          const T d = dy[(o * op.m + r) * cols + c];
          if (bias >= 0) row[bias + r] += d;
          if (weight < 0 || d == T(0)) continue;
          const T* from = x + (op.first(0) + o * op.k) * cols + c;
          T* to = row + weight + r * row_step;
          for (int64_t f = 0; f < op.k; ++f) to[f * step] += d * from[f * cols];
        }
    }
  }
}

template class Derivatives<float>;
template class Derivatives<double>;

}  // namespace pylandscape
