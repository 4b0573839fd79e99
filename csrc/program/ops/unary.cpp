// unary: y = f(x), elementwise, with two numbers of the function.
#include "program/ops/entry.h"

namespace pylandscape {

int OpList::unary(int x, cpu::Unary f, double a, double b) {
  Op op(OpKind::kUnary, {x});
  op.unary = f, op.a = a, op.b = b;
  return add(std::move(op), in_features(x));
}

namespace {

struct Unary : Rules<Unary> {
  static constexpr bool in_place = true, point_lanes = true, curves = true;

  template <class P>
  static void call(const P& c) {
    c.kernels.unary(c.op.unary, c.op.a, c.op.b, c.size(), c.x(), c.y);
  }

  static Function function(const Op& op) { return op.unary; }

  static void resident(ResidentStep& s) {
    s.step.kind = resident::Kind::kUnary, s.step.function = static_cast<int32_t>(s.op.unary);
  }

  static void hessian(HessianSteps& to, const PointStep& from) {
    if (from.op.unary > cpu::Unary::kExp) to.refuse("a rarer function of elements");
    hessian::Step& step = to.add(hessian::Kind::kUnary, from);
    step.function = static_cast<int32_t>(from.op.unary), step.bent = to.narrow(from.bent);
  }

  // Keeps f' and f''; Derivatives makes f'' dy of it once dy is known.
  template <class P>
  static void forward(const P& p) {
    const Op& op = p.op;
    const auto c = call_of(p);
    const auto *x = c.x();
    each_part(p, [&](int64_t at, int64_t size) {
      p.kernels.unary(op.unary, op.a, op.b, size, x + at, c.y + at);
      if (p.moves())
        p.kernels.unary_derivatives(op.unary, op.a, op.b, size, x + at, p.bent(p.to.first) + at,
                                    p.bent(p.to.curved) + at);
    });
  }

  template <class P>
  static void reverse(const P& p) {
    each_part(p, [&](int64_t at, int64_t size) {
      p.kernels.product_add(size, 1, p.first() + at, p.dy + at, p.dx + at);
    });
  }

  template <class P>
  static void tangent_forward(const P& p) {
    each_part(p, [&](int64_t at, int64_t size) {
      p.kernels.binary(cpu::Binary::kMul, size, p.first() + at, p.rx + at, p.ry + at);
      if (p.op.unary == cpu::Unary::kPositive)  // zeros, and NaN where there are no tangents
        p.kernels.product_add(size, 1, p.curved() + at, p.rx + at, p.ry + at);
    });
  }

  template <class P>
  static void tangent_reverse(const P& p) {  // R(dx) = f' R(dy) + (f'' dy) Rx
    each_part(p, [&](int64_t at, int64_t size) {
      p.kernels.product_add(size, 1, p.first() + at, p.rdy + at, p.rdx + at);
      p.kernels.product_add(size, 1, p.curved() + at, p.rx + at, p.rdx + at);
    });
  }

  // f(first element, how many) for parts of rows.
  template <class P, typename F>
  static void each_part(const P& p, F f) {
    p.share(p.rows(), 4 * p.cols, [&](int64_t first, int64_t last) {
      f(first * p.cols, (last - first) * p.cols);
    });
  }
};

}  // namespace

const OpEntry ops::unary = make_entry<Unary>();

}  // namespace pylandscape
