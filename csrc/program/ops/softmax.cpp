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
    each_part(p, [&](const cpu::SoftmaxArgs& a, int64_t at) {
      p.kernels.softmax_reverse(a, p.cols, p.y() + at, p.dy + at, p.dx + at);
    });
  }

  template <class P>
  static void tangent_forward(const P& p) {
    each_part(p, [&](const cpu::SoftmaxArgs& a, int64_t at) {
      p.kernels.softmax_tangent(a, p.cols, p.y() + at, p.rx + at, p.ry + at);
    });
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    each_part(p, [&](const cpu::SoftmaxArgs& a, int64_t at) {
      p.kernels.softmax_reverse_tangent(a, p.cols, p.y() + at, p.ry + at, p.dy + at, p.rdy + at,
                                        p.rdx + at);
    });
  }

  // f(part, its first element).
  template <class P, typename F>
  static void each_part(const P& p, F f) {
    const Op& op = p.op;
    const int64_t group = op.k * op.inner * p.cols;
    p.share(op.outer, 4 * group, [&](int64_t first, int64_t last) {
      f(cpu::SoftmaxArgs{op.log, last - first, op.k, op.inner}, first * group);
    });
  }
};

}  // namespace

const OpEntry ops::softmax = make_entry<Softmax>();

}  // namespace pylandscape
