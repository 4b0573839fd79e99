// What the passes of Points hand to an op: one step of one block of samples, with points as lanes.
// The names are those of derivatives/passes.h, so that an op without parameters writes each pass once
// for both. A step's parameters differ from lane to lane, and their derivatives are summed by Points
// itself: to an op, its weight and all that belongs to it are null here.
#pragma once
#include "cpu/kernels.h"
#include "cpu/points.h"
#include "points/step.h"

namespace pylandscape {

// What is the same for all steps of a pass.
struct PointTile {
  const PointSlots& slots;
  const cpu::Kernels<double>& kernels;
  const cpu::PointKernels& points;
  const PointBlock& block;
  PointWorker& worker;
};

struct PointPass {
  using Value = double;
  PointPass(const PointTile& of, const PointStep& at)
      : tile(of), step(at), op(at.op), kernels(of.kernels), cols(of.block.cols) {}
  const PointTile& tile;
  const PointStep& step;
  const Op& op;
  const cpu::Kernels<double>& kernels;
  int64_t cols;

  const std::vector<int64_t>& features() const { return tile.slots.features; }
  int64_t rows() const { return features()[op.output]; }
  int64_t size() const { return rows() * cols; }
  bool moves() const { return step.moves; }
  const double* value(int slot) const {
    return slot == 0 ? tile.worker.data : part(tile.worker.rows.values, slot);
  }
  const double* x(size_t input = 0) const { return value(op.inputs[input]); }
  const double* y() const { return value(op.output); }
  double* part(const Buffer<double>& of, int slot) const {
    return of.data() + tile.slots.row[slot] * cols;
  }
  double* bent(const Buffer<double>& of) const { return of.data() + step.bent * cols; }
  const double* first() const { return bent(tile.worker.rows.first); }    // f'(x)
  const double* curved() const { return bent(tile.worker.rows.curved); }  // f''(x) dy
  // Whether a slot gets an adjoint: it depends on theta, and a step from `oldest` on writes it.
  bool adjoins(int slot, int oldest) const {
    return tile.slots.moves[slot] && tile.slots.maker[slot] >= oldest;
  }
  bool arrives(int oldest) const {  // at any of the inputs; else no op is asked
    for (const int slot : op.inputs)
      if (adjoins(slot, oldest)) return true;
    return false;
  }
  // A parameter at `place`, as lanes; null where there is none.
  const double* source(int64_t place) const {
    return place < 0 ? nullptr : tile.worker.source.data() + place * tile.points.lanes;
  }
  // Scratch of `size` elements.
  const Buffer<double>& spare(int64_t size) const {
    Buffer<double>& kept = tile.worker.spare;
    if (kept.size() < size) kept = Buffer<double>(size);
    return kept;
  }
  // As of Pass; a block of points is one thread's.
  template <typename F>
  static void share(int64_t count, int64_t, F f) {
    f(int64_t{0}, count);
  }
  static constexpr bool shares(int64_t) { return false; }
  static constexpr const double* weight() { return nullptr; }
  static constexpr const double* along(int) { return nullptr; }
};

struct PointForward : PointPass {
  PointForward(const PointTile& of, const PointStep& step)
      : PointPass(of, step), to(of.worker.rows), y(part(to.values, op.output)) {}
  const PointRows& to;
  double* y;
  struct {
    const double *weight = nullptr, *bias = nullptr;
  } at;
};

// Adds to the adjoints of the inputs. At theta; or, where no value of the step has a tangent, their
// tangents: of what the steps from `origin` on have made.
struct PointReverse : PointPass {
  PointReverse(const PointTile& of, const PointStep& step, const Buffer<double>& rows, int origin)
      : PointPass(of, step), adjoints(rows), oldest(origin), dy(part(rows, op.output)) {
    dx = op.inputs.empty() ? nullptr : d(0);
  }
  const Buffer<double>& adjoints;
  int oldest;
  double *dy, *dx;
  static constexpr double *dw = nullptr, *db = nullptr;
  double* d(size_t input) const {
    const int slot = op.inputs[input];
    return adjoins(slot, oldest) ? part(adjoints, slot) : nullptr;
  }
};

// The tangent of every value along a row of the output of step `origin`.
struct PointTangentForward : PointPass {
  PointTangentForward(const PointTile& of, const PointStep& step, const PointStep& from)
      : PointPass(of, step), origin(from), ry(r_of(op.output)) {
    rx = op.inputs.empty() ? nullptr : r(0);
  }
  const PointStep& origin;
  double* ry;
  const double* rx;
  static constexpr const double *rw = nullptr, *rb = nullptr;
  double* r_of(int slot) const {
    return origin.reach[slot] ? part(tile.worker.rows.tangents, slot) : nullptr;
  }
  const double* r(size_t input) const { return r_of(op.inputs[input]); }
};

// The tangent of every adjoint, back to step `origin`.
struct PointTangentReverse : PointTangentForward {
  PointTangentReverse(const PointTile& of, const PointStep& step, const PointStep& from)
      : PointTangentForward(of, step, from),
        dy(part(of.worker.rows.adjoints, op.output)),
        rdy(part(of.worker.rows.adjoint_tangents, op.output)) {
    rdx = op.inputs.empty() ? nullptr : rd(0);
  }
  const double* dy;
  double *rdy, *rdx;
  static constexpr double *rdw = nullptr, *rdb = nullptr;
  double* rd(size_t input) const {
    const int slot = op.inputs[input];
    return adjoins(slot, tile.slots.maker[origin.op.output])
               ? part(tile.worker.rows.adjoint_tangents, slot)
               : nullptr;
  }
};

}  // namespace pylandscape
