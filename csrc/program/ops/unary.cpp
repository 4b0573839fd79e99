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
    call(call_of(p));
    if (p.moves())
      p.kernels.unary_derivatives(p.op.unary, p.op.a, p.op.b, p.size(), p.x(), p.bent(p.to.first),
                                  p.bent(p.to.curved));
  }

  template <class P>
  static void reverse(const P& p) {
    p.kernels.product_add(p.size(), 1, p.first(), p.dy, p.dx);
  }

  template <class P>
  static void tangent_forward(const P& p) {
    p.kernels.binary(cpu::Binary::kMul, p.size(), p.first(), p.rx, p.ry);
    if (p.op.unary == cpu::Unary::kPositive)  // zeros, and NaN where there are no tangents
      p.kernels.product_add(p.size(), 1, p.curved(), p.rx, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {  // R(dx) = f' R(dy) + (f'' dy) Rx
    p.kernels.product_add(p.size(), 1, p.first(), p.rdy, p.rdx);
    p.kernels.product_add(p.size(), 1, p.curved(), p.rx, p.rdx);
  }
};

}  // namespace

const OpEntry ops::unary = make_entry<Unary>();

}  // namespace pylandscape
