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

  template <typename T>
  static void call(const Call<T>& c) {
    c.kernels.unary(c.op.unary, c.op.a, c.op.b, c.size(), c.x(), c.y);
  }

  static void resident(ResidentStep& s) {
    s.step.kind = resident::Kind::kUnary, s.step.function = static_cast<int32_t>(s.op.unary);
  }

  // Keeps f' and f''; Derivatives makes f'' dy of it once dy is known.
  template <typename T>
  static void forward(const Forward<T>& p) {
    call(call_of(p));
    if (p.layout.moves[p.op.output])
      p.kernels.unary_derivatives(p.op.unary, p.op.a, p.op.b, p.size(), p.slots[p.op.inputs[0]],
                                  p.bent(p.to.first), p.bent(p.to.curved));
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    p.kernels.product_add(p.size(), T(1), p.first(), p.dy, p.dx);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    p.kernels.binary(cpu::Binary::kMul, p.size(), p.first(), p.rx, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {  // R(dx) = f' R(dy) + (f'' dy) Rx
    p.kernels.product_add(p.size(), T(1), p.first(), p.rdy, p.rdx);
    p.kernels.product_add(p.size(), T(1), p.curved(), p.rx, p.rdx);
  }
};

}  // namespace

const OpEntry ops::unary = make_entry<Unary>();

}  // namespace pylandscape
