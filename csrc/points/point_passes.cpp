// The passes of Points over the steps of one block of samples; what an op does in them is in its own
// file, program/ops/<op>.cpp. dy: adjoint of y; a leading r: tangent.
#include <algorithm>

#include "points/points.h"
#include "program/ops/entry.h"

namespace pylandscape {
namespace {

// What the parameters of row `row` multiply: its inputs, and `last` for the bias.
cpu::PointInputs inputs_of(const PointStep& step, int64_t row, int64_t cols, const double* rows,
                           const double* last) {
  const int64_t k = step.weight_moves ? step.k : 0;
  const int64_t first = k > 0 ? (step.first + row / step.group * step.k) * cols : 0;
  return {k > 0 ? rows + first : nullptr, k, step.bias_moves ? last : nullptr};
}

}  // namespace

cpu::Targets Points::targets(const Worker& w) const {
  cpu::Targets found;
  if (w.index.size() > 0) found.index = w.indices;
  if (w.dense.size() > 0) found.dense = w.targets;
  return found;
}

// Zero in `rows` for what is added to: the slots that steps from `from` on make.
void Points::clear(size_t from, const Buffer<double>& rows, const Block& b) const {
  for (size_t i = from; i < steps_.size(); ++i) {
    const int slot = steps_[i].op.output;
    if (slots_.moves[slot] && !slots_.whole[slot])
      std::fill_n(part(rows, b, slot), slots_.features[slot] * b.cols, 0.0);
  }
}

void Points::forward(const Block& b, Worker& w) const {
  const PointTile of = tile(b, w);
  for (const Step& step : steps_) step.passes->forward({of, step});
}

// Adjoints of every slot that moves, from the loss's.
void Points::reverse(const Block& b, Worker& w) const {
  const PointTile of = tile(b, w);
  clear(0, w.rows.adjoints, b);
  kernels_.loss_gradient(program_.loss_, targets(w), b.cols, value(w, b, output_),
                         part(w.rows.adjoints, b, output_));
  for (size_t i = steps_.size(); i-- > 0;) {
    const Step& step = steps_[i];
    if (!step.moves) continue;
    const PointReverse p(of, step, w.rows.adjoints, 0);
    if (step.op.relu && !step.masked) kernels_.mask(p.size(), p.y(), p.dy);
    if (p.arrives(0)) step.passes->reverse(p);
    if (step.bent < 0) continue;
    double* curved = p.bent(w.rows.curved);  // f'' dy, met by every tangent
    kernels_.binary(cpu::Binary::kMul, p.size(), curved, p.dy, curved);
  }
}

// Tangents along row `row` of the output of step `from`, before its relu.
void Points::tangent_forward(size_t from, int64_t row, const Block& b, Worker& w) const {
  const PointTile of = tile(b, w);
  const Step& origin = steps_[from];
  const PointTangentForward begin(of, origin, origin);
  double* start = begin.ry + row * b.cols;
  std::fill_n(begin.ry, begin.size(), 0.0);
  std::fill_n(start, b.cols, 1.0);
  if (origin.op.relu) kernels_.mask(b.cols, begin.y() + row * b.cols, start);
  for (size_t i = from + 1; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    if (!origin.reach[step.op.output]) continue;
    const PointTangentForward p(of, step, origin);
    step.passes->tangent_forward(p);
    if (step.op.relu && !step.is_product()) kernels_.mask(p.size(), p.y(), p.ry);
  }
}

// Tangents of the adjoints back to step `from`, and the Hessian's entries on the way.
void Points::tangent_reverse(size_t from, int64_t row, const Block& b, Worker& w) const {
  const PointTile of = tile(b, w);
  const Step& origin = steps_[from];
  const Buffer<double>& rows = w.rows.adjoint_tangents;
  clear(from, rows, b);
  const PointTangentForward end(of, steps_[slots_.maker[output_]], origin);
  kernels_.loss_hvp(program_.loss_, targets(w), b.cols, end.y(), end.ry, part(rows, b, output_));
  for (size_t i = steps_.size(); i-- > from;) {
    const Step& step = steps_[i];
    if (!step.moves) continue;
    const PointTangentReverse p(of, step, origin);
    if (step.op.relu && !step.masked) kernels_.mask(p.size(), p.y(), p.rdy);
    if (step.has_parameters()) hessian_add(p, origin, row, w);
    if (i == from || !p.arrives(static_cast<int>(from))) continue;
    if (p.ry != nullptr)
      step.passes->tangent_reverse(p);
    else  // no value here has a tangent
      step.passes->reverse(PointReverse(of, step, rows, static_cast<int>(from)));
  }
}

void Points::gradient_add(const Step& step, const Block& b, Worker& w) const {
  const double* x = step.op.inputs.empty() ? nullptr : value(w, b, step.op.inputs[0]);
  const double* dy = part(w.rows.adjoints, b, step.op.output);
  const int64_t group = step.group;
  for (int64_t first = 0; first < slots_.features[step.op.output]; first += group)
    points_.dots_add(b.samples, group, dy + first * b.cols,
                     inputs_of(step, first, b.cols, x, w.ones.data()), step.places_of(first),
                     w.gradient.data());
}

// Entries of the parameters of row `row` of step `origin` with all of a step's, from it on.
void Points::hessian_add(const PointTangentReverse& p, const Step& origin, int64_t row,
                         Worker& w) const {
  const Step& step = p.step;
  const Block& b = p.tile.block;
  const bool same = &origin == &step;
  const double* x0 = origin.op.inputs.empty() ? nullptr : value(w, b, origin.op.inputs[0]);
  const double* x = step.op.inputs.empty() ? nullptr : p.x();
  const bool bends = !same && p.rx != nullptr && step.weight_moves;
  cpu::OuterArgs args{b.samples, n_, inputs_of(origin, row, b.cols, x0, w.ones.data()), {}, {},
                      nullptr, nullptr, w.hessian.data(), origin.places_of(row), nullptr,
                      w.scratch.data()};
  for (int64_t r = 0; r < p.rows(); ++r) {
    if (same && step.key[r] < origin.key[row]) continue;
    args.x = inputs_of(step, r, b.cols, x, w.ones.data());
    if (bends) args.rx = inputs_of(step, r, b.cols, p.rx, w.zeros.data());
    args.rd = p.rdy + r * b.cols, args.d = p.dy + r * b.cols;
    args.row = step.places_of(r);
    points_.outer_add(args);
  }
}

}  // namespace pylandscape
