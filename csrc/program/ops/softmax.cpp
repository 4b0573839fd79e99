// softmax: over the middle of (outer, k, inner), or its logarithm.
#include "program/ops/entry.h"

namespace pylandscape {

int OpList::softmax(int x, bool log, int64_t outer, int64_t size, int64_t inner) {
  require(in_features(x) == outer * size * inner && size > 0,
          "softmax: features are not outer * size * inner");
  Op op(OpKind::kSoftmax, {x});
  op.log = log, op.outer = outer, op.k = size, op.inner = inner;
  return add(std::move(op), in_features(x));
}

namespace {

cpu::SoftmaxArgs softmax_of(const Op& op) { return {op.log, op.outer, op.k, op.inner}; }

struct Softmax : Rules<Softmax> {
  static constexpr bool in_place = true, point_lanes = true;

  template <class P>
  static void call(const P& c) {
    c.kernels.softmax(c.op.log, c.op.outer, c.op.k, c.op.inner, c.cols, c.x(), c.y);
  }

  static void resident(ResidentStep& s) { s.step.kind = resident::Kind::kSoftmax; }

  static void hessian(HessianSteps& to, const PointStep& from) {
    to.add(hessian::Kind::kSoftmax, from);
  }

  template <class P>
  static void reverse(const P& p) {
    p.kernels.softmax_reverse(softmax_of(p.op), p.cols, p.y(), p.dy, p.dx);
  }

  template <class P>
  static void tangent_forward(const P& p) {
    p.kernels.softmax_tangent(softmax_of(p.op), p.cols, p.y(), p.rx, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    p.kernels.softmax_reverse_tangent(softmax_of(p.op), p.cols, p.y(), p.ry, p.dy, p.rdy, p.rdx);
  }
};

}  // namespace

const OpEntry ops::softmax = make_entry<Softmax>();

}  // namespace pylandscape
