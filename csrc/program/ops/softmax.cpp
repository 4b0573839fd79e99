// softmax: over the middle of (outer, k, inner), or its logarithm. With `bounds`, over the first of
// the rows of each of `outer` alone.
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

int OpList::softmax(int x, bool log, int64_t outer, int64_t size, int64_t inner,
                    std::vector<int64_t> first) {
  require(in_features(x) == outer * size * inner && size > 0,
          "softmax: features are not outer * size * inner");
  require(first.empty() || (static_cast<int64_t>(first.size()) == outer && !log &&
                            std::all_of(first.begin(), first.end(),
                                        [&](int64_t n) { return n > 0 && n <= size; })),
          "softmax: expected how many rows of each take part, 1 to size");
  Op op(OpKind::kSoftmax, {x});
  op.log = log, op.outer = outer, op.k = size, op.inner = inner, op.bounds = std::move(first);
  return add(std::move(op), in_features(x));
}

namespace {

cpu::SoftmaxArgs softmax_of(const Op& op) { return {op.log, op.outer, op.k, op.inner}; }

struct Softmax : Rules<Softmax> {
  static constexpr bool in_place = true, point_lanes = true;

  template <class P>
  static void call(const P& c) {
    const Op& op = c.op;
    if (op.bounds.empty())
      return c.kernels.softmax(op.log, op.outer, op.k, op.inner, c.cols, c.x(), c.y);
    const int64_t row = op.inner * c.cols, group = op.k * row;
    for (int64_t o = 0; o < op.outer; ++o) {
      auto* y = c.y + o * group;
      c.kernels.softmax(false, 1, op.bounds[o], op.inner, c.cols, c.x() + o * group, y);
      std::fill(y + op.bounds[o] * row, y + group, 0);
    }
  }

  static void resident(ResidentStep& s) { s.step.kind = resident::Kind::kSoftmax; }

  static void hessian(HessianSteps& to, const PointStep& from) {
    if (!from.op.bounds.empty()) to.refuse("softmax over a part of the rows");
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
