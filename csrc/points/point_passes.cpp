// The passes of Points over the steps of one block of samples. dy: adjoint of y; a leading r:
// tangent. The same as program/ops/, with parameters that differ from lane to lane.
#include <algorithm>

#include "points/points.h"
#include "program/ops/parts.h"

namespace pylandscape {

cpu::Targets Points::targets(const Worker& w) const {
  cpu::Targets found;
  if (w.index.size() > 0) found.index = w.index.data();
  if (w.dense.size() > 0) found.dense = w.dense.data();
  return found;
}

void Points::forward(const Block& b, Worker& w) const {
  for (const Step& step : steps_) {
    const int64_t size = features_[step.output] * b.cols;
    const double* x = step.inputs.empty() ? nullptr : value(w, b, step.inputs[0]);
    const double* source = w.source.data();
    double* y = w.rows.values.data() + row_[step.output] * b.cols;
    switch (step.kind) {
      case OpKind::kLinear: {
        const Op& op = *step.op;
        const double* bias = step.bias < 0 ? nullptr : source + step.bias * lanes_;
        for (int64_t o = 0; o < op.outer; ++o)
          points_.linear(op.m, b.samples, op.k, source + step.weight * lanes_, step.row,
                         step.column, x + (op.first(0) + o * op.k) * b.cols, bias, step.relu, false,
                         y + o * op.m * b.cols);
        break;
      }
      case OpKind::kUnary: {
        const Op& op = *step.op;
        kernels_.unary(op.unary, op.a, op.b, size, x, y);
        if (!step.moves) break;
        kernels_.unary_derivatives(op.unary, op.a, op.b, size, x,
                                   w.rows.first.data() + step.bent * b.cols,
                                   w.rows.curved.data() + step.bent * b.cols);
        break;
      }
      case OpKind::kBinary:
        kernels_.binary(step.binary, size, x, value(w, b, step.inputs[1]), y);
        if (step.relu) kernels_.unary(cpu::Unary::kRelu, 0, 0, size, y, y);
        break;
      case OpKind::kLayerNorm:
        kernels_.layer_norm(step.op->outer, step.op->k, b.cols, step.op->a, nullptr, nullptr, x, y);
        break;
      case OpKind::kGroupNorm:
        kernels_.group_norm(step.op->norm_args(), b.cols, nullptr, nullptr, step.relu, x, y);
        break;
      case OpKind::kBatchNorm:
        kernels_.channel_affine(step.op->outer, step.op->k, b.cols, step.scale.data(),
                                step.shift.data(), step.relu, x, y);
        break;
      case OpKind::kSoftmax:
        kernels_.softmax(step.op->log, step.op->outer, step.op->k, step.op->inner, b.cols, x, y);
        break;
      case OpKind::kConcat:
        each_part(*step.op, features_, [&](int slot, int64_t from, int64_t offset, int64_t rows) {
          std::copy_n(value(w, b, slot) + from * b.cols, rows * b.cols, y + offset * b.cols);
        });
        break;
      case OpKind::kExpand:
        for (size_t f = 0; f < step.index.size(); ++f)
          for (int64_t s = 0; s < b.samples; ++s)
            std::copy_n(source + (step.weight + step.index[f]) * lanes_, lanes_,
                        y + static_cast<int64_t>(f) * b.cols + s * lanes_);
        break;
      case OpKind::kGather: gather_rows(step.op->index, b.cols, step.op->a, x, y); break;
      case OpKind::kPool: kernels_.pool(step.op->pool_args(), b.cols, x, y); break;
      case OpKind::kMatmul:
        kernels_.matmul(step.op->matmul(), b.cols, step.op->a, false, x,
                        value(w, b, step.inputs[1]), y);
        break;
      default: break;  // refused by lower()
    }
  }
}

// Adjoints of every slot that moves, from the loss's.
void Points::reverse(const Block& b, Worker& w) const {
  std::fill_n(w.rows.adjoints.data(), rows_ * b.cols, 0.0);
  kernels_.loss_gradient(program_.loss_, targets(w), b.cols, value(w, b, output_),
                         at(w.rows.adjoints, b, output_));
  for (size_t i = steps_.size(); i-- > 0;) {
    const Step& step = steps_[i];
    if (!step.moves) continue;
    const int64_t size = features_[step.output] * b.cols;
    double* dy = at(w.rows.adjoints, b, step.output);
    if (step.relu) kernels_.mask(size, value(w, b, step.output), dy);
    pull(step, b, w, dy, [&](int slot) { return at(w.rows.adjoints, b, slot); });
    if (step.kind != OpKind::kUnary) continue;
    double* curved = w.rows.curved.data() + step.bent * b.cols;  // f'' dy, met by every tangent
    kernels_.binary(cpu::Binary::kMul, size, curved, dy, curved);
  }
}

// The inputs' adjoints += those that follow from dy with the parameters and values as they are.
// adjoint(slot): where they are, or null.
template <typename F>
void Points::pull(const Step& step, const Block& b, const Worker& w, const double* dy,
                  F adjoint) const {
  const int64_t size = features_[step.output] * b.cols;
  const int x = step.inputs.empty() ? -1 : step.inputs[0];
  double* dx = x < 0 ? nullptr : adjoint(x);
  switch (step.kind) {
    case OpKind::kLinear: {
      const Op& op = *step.op;
      for (int64_t o = 0; dx != nullptr && o < op.outer; ++o)
        points_.linear(op.k, b.samples, op.m, w.source.data() + step.weight * lanes_, step.column,
                       step.row, dy + o * op.m * b.cols, nullptr, false, true,
                       dx + (op.first(0) + o * op.k) * b.cols);
      break;
    }
    case OpKind::kUnary:
      if (dx == nullptr) break;
      kernels_.product_add(size, 1.0, w.rows.first.data() + step.bent * b.cols, dy, dx);
      break;
    case OpKind::kBinary: {
      const int other = step.inputs[1];
      double* dz = adjoint(other);
      if (step.binary == cpu::Binary::kDiv) {
        if (dx == nullptr && dz == nullptr) break;
        kernels_.divide_reverse(size, value(w, b, other), value(w, b, step.output), dy,
                                dx != nullptr ? dx : w.unused.data(),
                                dz != nullptr ? dz : w.unused.data());
        break;
      }
      const bool product = step.binary == cpu::Binary::kMul;
      const double sign = step.binary == cpu::Binary::kSub ? -1.0 : 1.0;
      if (dx != nullptr)
        kernels_.product_add(size, 1.0, dy, product ? value(w, b, other) : nullptr, dx);
      if (dz != nullptr)
        kernels_.product_add(size, sign, dy, product ? value(w, b, x) : nullptr, dz);
      break;
    }
    case OpKind::kLayerNorm: case OpKind::kGroupNorm:
      if (dx == nullptr) break;
      kernels_.layer_norm_reverse(step.op->norm_args(), b.cols, nullptr, value(w, b, x), dy, dx,
                                  nullptr, nullptr);
      break;
    case OpKind::kBatchNorm:
      if (dx == nullptr) break;
      kernels_.channel_affine_add(step.op->outer, step.op->k, b.cols, step.scale.data(), nullptr,
                                  dy, dx);
      break;
    case OpKind::kSoftmax:
      if (dx == nullptr) break;
      kernels_.softmax_reverse(softmax_of(*step.op), b.cols, value(w, b, step.output), dy, dx);
      break;
    case OpKind::kConcat:
      each_part(*step.op, features_, [&](int slot, int64_t from, int64_t offset, int64_t rows) {
        double* to = adjoint(slot);
        if (to == nullptr) return;
        kernels_.product_add(rows * b.cols, 1.0, dy + offset * b.cols, nullptr, to + from * b.cols);
      });
      break;
    case OpKind::kGather:
      if (dx != nullptr) scatter_add(*step.op, kernels_, b.cols, dy, dx);
      break;
    case OpKind::kPool:
      if (dx == nullptr) break;
      kernels_.pool_reverse(step.op->pool_args(), b.cols, value(w, b, x), dy, dx);
      break;
    case OpKind::kMatmul: {
      const int other = step.inputs[1];
      const Op& op = *step.op;
      if (dx != nullptr)
        kernels_.matmul(matmul_dx(op), b.cols, op.a, true, dy, value(w, b, other), dx);
      if (double* dz = adjoint(other))
        kernels_.matmul(matmul_dy(op), b.cols, op.a, true, value(w, b, x), dy, dz);
      break;
    }
    default: break;
  }
}

// Tangents along row `row` of the output of step `from`, before its relu.
void Points::tangent_forward(size_t from, int64_t row, const Block& b, Worker& w) const {
  const Step& origin = steps_[from];
  const auto tangent = [&](int slot) { return reached(w.rows.tangents, b, origin, slot); };
  double* start = tangent(origin.output);
  std::fill_n(start, features_[origin.output] * b.cols, 0.0);
  std::fill_n(start + row * b.cols, b.cols, 1.0);
  if (origin.relu)
    kernels_.mask(b.cols, value(w, b, origin.output) + row * b.cols, start + row * b.cols);
  for (size_t i = from + 1; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    double* ry = tangent(step.output);
    if (ry == nullptr) continue;
    const int64_t size = features_[step.output] * b.cols;
    const int x = step.inputs[0];
    const double* rx = tangent(x);
    switch (step.kind) {
      case OpKind::kLinear: {
        const Op& op = *step.op;
        for (int64_t o = 0; o < op.outer; ++o)
          points_.linear(op.m, b.samples, op.k, w.source.data() + step.weight * lanes_, step.row,
                         step.column, rx + (op.first(0) + o * op.k) * b.cols, nullptr, false, false,
                         ry + o * op.m * b.cols);
        break;
      }
      case OpKind::kUnary:
        kernels_.binary(cpu::Binary::kMul, size, w.rows.first.data() + step.bent * b.cols, rx, ry);
        break;
      case OpKind::kBinary: {
        const int other = step.inputs[1];
        const double* rz = tangent(other);
        if (step.binary == cpu::Binary::kDiv) {
          kernels_.divide_tangent(size, value(w, b, other), value(w, b, step.output), rx, rz, ry);
          break;
        }
        const bool product = step.binary == cpu::Binary::kMul;
        const double sign = step.binary == cpu::Binary::kSub ? -1.0 : 1.0;
        std::fill_n(ry, size, 0.0);
        if (rx != nullptr)
          kernels_.product_add(size, 1.0, rx, product ? value(w, b, other) : nullptr, ry);
        if (rz != nullptr)
          kernels_.product_add(size, sign, rz, product ? value(w, b, x) : nullptr, ry);
        break;
      }
      case OpKind::kLayerNorm: case OpKind::kGroupNorm:
        kernels_.layer_norm_tangent(step.op->norm_args(), b.cols, nullptr, value(w, b, x), rx,
                                    nullptr, nullptr, ry);
        break;
      case OpKind::kBatchNorm:
        std::fill_n(ry, size, 0.0);
        kernels_.channel_affine_add(step.op->outer, step.op->k, b.cols, step.scale.data(), nullptr,
                                    rx, ry);
        break;
      case OpKind::kSoftmax:
        kernels_.softmax_tangent(softmax_of(*step.op), b.cols, value(w, b, step.output), rx, ry);
        break;
      case OpKind::kConcat:
        each_part(*step.op, features_, [&](int slot, int64_t at, int64_t offset, int64_t rows) {
          const double* r = tangent(slot);
          double* to = ry + offset * b.cols;
          if (r != nullptr) std::copy_n(r + at * b.cols, rows * b.cols, to);
          else std::fill_n(to, rows * b.cols, 0.0);
        });
        break;
      case OpKind::kGather: gather_rows(step.op->index, b.cols, 0.0, rx, ry); break;
      case OpKind::kPool:
        kernels_.pool_tangent(step.op->pool_args(), b.cols, value(w, b, x), rx, ry);
        break;
      case OpKind::kMatmul: {
        const Op& op = *step.op;
        const double* rz = tangent(step.inputs[1]);
        if (rx != nullptr)
          kernels_.matmul(op.matmul(), b.cols, op.a, false, rx, value(w, b, step.inputs[1]), ry);
        if (rz != nullptr)
          kernels_.matmul(op.matmul(), b.cols, op.a, rx != nullptr, value(w, b, x), rz, ry);
        break;
      }
      default: break;
    }
    if (step.relu) kernels_.mask(size, value(w, b, step.output), ry);
  }
}

// Tangents of the adjoints back to step `from`, and the Hessian's entries on the way.
void Points::tangent_reverse(size_t from, int64_t row, const Block& b, Worker& w) const {
  const Step& origin = steps_[from];
  const auto tangent = [&](int slot) { return reached(w.rows.tangents, b, origin, slot); };
  const auto adjoint = [&](int slot) {
    return maker_[slot] < static_cast<int>(from) ? nullptr
                                                 : at(w.rows.adjoint_tangents, b, slot);
  };
  const int64_t first = row_[origin.output];
  std::fill_n(w.rows.adjoint_tangents.data() + first * b.cols, (rows_ - first) * b.cols, 0.0);
  kernels_.loss_hvp(program_.loss_, targets(w), b.cols, value(w, b, output_), tangent(output_),
                    adjoint(output_));
  for (size_t i = steps_.size(); i-- > from;) {
    const Step& step = steps_[i];
    if (!step.moves) continue;
    const int64_t size = features_[step.output] * b.cols;
    double* rdy = adjoint(step.output);
    if (step.relu) kernels_.mask(size, value(w, b, step.output), rdy);
    if (step.has_parameters()) hessian_add(from, row, step, b, w);
    if (i > from) bend(step, b, w, tangent, adjoint);
  }
}

// R of `pull`: what follows from rdy, and from the tangents of the values that it multiplies by.
template <typename F, typename G>
void Points::bend(const Step& step, const Block& b, const Worker& w, F tangent, G adjoint) const {
  const int64_t size = features_[step.output] * b.cols;
  const int x = step.inputs.empty() ? -1 : step.inputs[0];
  const double *dy = at(w.rows.adjoints, b, step.output), *rdy = adjoint(step.output);
  const double* rx = x < 0 ? nullptr : tangent(x);
  double* rdx = x < 0 ? nullptr : adjoint(x);
  const bool straight = tangent(step.output) == nullptr;  // no value here has a tangent
  if (!straight && (step.kind == OpKind::kLayerNorm || step.kind == OpKind::kGroupNorm)) {
    if (rdx != nullptr)
      kernels_.layer_norm_reverse_tangent(step.op->norm_args(), b.cols, nullptr, nullptr,
                                          value(w, b, x), rx, dy, rdy, rdx, nullptr, nullptr);
    return;
  }
  if (!straight && step.kind == OpKind::kSoftmax) {
    if (rdx != nullptr)
      kernels_.softmax_reverse_tangent(softmax_of(*step.op), b.cols, value(w, b, step.output),
                                       tangent(step.output), dy, rdy, rdx);
    return;
  }
  if (!straight && step.kind == OpKind::kBinary && step.binary == cpu::Binary::kDiv) {
    const int other = step.inputs[1];
    double* rdz = adjoint(other);
    if (rdx != nullptr || rdz != nullptr)
      kernels_.divide_reverse_tangent(size, value(w, b, other), value(w, b, step.output), dy,
                                      tangent(other), tangent(step.output), rdy,
                                      rdx != nullptr ? rdx : w.unused.data(),
                                      rdz != nullptr ? rdz : w.unused.data());
    return;
  }
  pull(step, b, w, rdy, adjoint);
  if (straight) return;
  if (step.kind == OpKind::kUnary && rdx != nullptr && rx != nullptr)
    kernels_.product_add(size, 1.0, w.rows.curved.data() + step.bent * b.cols, rx, rdx);
  if (step.kind == OpKind::kBinary && step.binary == cpu::Binary::kMul) {
    const double* rz = tangent(step.inputs[1]);
    double* rdz = adjoint(step.inputs[1]);
    if (rdx != nullptr && rz != nullptr) kernels_.product_add(size, 1.0, dy, rz, rdx);
    if (rdz != nullptr && rx != nullptr) kernels_.product_add(size, 1.0, dy, rx, rdz);
  }
  if (step.kind == OpKind::kMatmul) {
    const Op& op = *step.op;
    const double* rz = tangent(step.inputs[1]);
    double* rdz = adjoint(step.inputs[1]);
    if (rdx != nullptr && rz != nullptr)
      kernels_.matmul(matmul_dx(op), b.cols, op.a, true, dy, rz, rdx);
    if (rdz != nullptr && rx != nullptr)
      kernels_.matmul(matmul_dy(op), b.cols, op.a, true, rx, dy, rdz);
  }
}

// What the parameters of a row multiply: its inputs, and `last` for the bias.
void Points::find_inputs(const Step& step, int64_t row, const Block& b, const double* rows,
                         const double* last, std::vector<const double*>& to) const {
  to.clear();
  if (step.kind == OpKind::kLinear && step.weight_moves) {
    const Op& op = *step.op;
    const double* from = rows + (op.first(0) + row / op.m * op.k) * b.cols;
    for (int64_t q = 0; q < op.k; ++q) to.push_back(from + q * b.cols);
  }
  if (static_cast<int64_t>(to.size()) < columns(step)) to.push_back(last);
}

void Points::gradient_add(const Step& step, const Block& b, Worker& w) const {
  const double* x = step.inputs.empty() ? nullptr : value(w, b, step.inputs[0]);
  const double* dy = at(w.rows.adjoints, b, step.output);
  const int64_t group = step.kind == OpKind::kLinear ? step.op->m : 1;
  for (int64_t first = 0; first < features_[step.output]; first += group) {
    find_inputs(step, first, b, x, w.ones.data(), w.inputs);
    const int64_t cols = static_cast<int64_t>(w.inputs.size());
    w.at.resize(group * cols);
    for (int64_t r = 0; r < group; ++r)
      for (int64_t q = 0; q < cols; ++q)
        w.at[r * cols + q] = parameter(step, first + r, q) * lanes_;
    points_.dots_add(b.samples, group, cols, dy + first * b.cols, w.inputs.data(), w.at.data(),
                     w.gradient.data());
  }
}

// Entries of the parameters of row `row` of step `from` with all of a step's, from it on.
void Points::hessian_add(size_t from, int64_t row, const Step& step, const Block& b,
                         Worker& w) const {
  const Step& origin = steps_[from];
  const bool same = &origin == &step;
  const double* x0 = origin.inputs.empty() ? nullptr : value(w, b, origin.inputs[0]);
  find_inputs(origin, row, b, x0, w.ones.data(), w.a);
  w.h.resize(w.a.size());
  for (size_t j = 0; j < w.a.size(); ++j)
    w.h[j] = w.hessian.data() +
             parameter(origin, row, static_cast<int64_t>(j)) * n_ * lanes_;
  const double* x = step.inputs.empty() ? nullptr : value(w, b, step.inputs[0]);
  const double* rx = same || step.inputs.empty()
                         ? nullptr
                         : reached(w.rows.tangents, b, origin, step.inputs[0]);
  const bool bends = rx != nullptr && step.weight_moves;
  const double* dy = at(w.rows.adjoints, b, step.output);
  const double* rdy = at(w.rows.adjoint_tangents, b, step.output);
  const int64_t group = step.kind == OpKind::kLinear ? step.op->m : 1;
  const int64_t from_key = key(origin, row);
  for (int64_t r = 0; r < features_[step.output]; ++r) {
    if (r % group == 0) {
      find_inputs(step, r, b, x, w.ones.data(), w.inputs);
      if (bends) find_inputs(step, r, b, rx, w.zeros.data(), w.input_tangents);
    }
    if (same && key(step, r) < from_key) continue;
    const int64_t cols = static_cast<int64_t>(w.inputs.size());
    w.at.resize(cols);
    for (int64_t q = 0; q < cols; ++q) w.at[q] = parameter(step, r, q) * lanes_;
    points_.outer_add({b.samples, static_cast<int64_t>(w.a.size()), cols, w.a.data(),
                       w.inputs.data(), bends ? w.input_tangents.data() : nullptr,
                       rdy + r * b.cols, dy + r * b.cols, w.h.data(), w.at.data(),
                       w.scratch.data()});
  }
}

}  // namespace pylandscape
