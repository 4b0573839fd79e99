// binary: the sum, difference, product or quotient of two values.
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

int OpList::binary(cpu::Binary f, int x, int y) {
  require(in_features(x) == in_features(y), "binary: inputs of different sizes");
  Op op(OpKind::kBinary, {x, y});
  op.binary = f;
  return add(std::move(op), in_features(x));
}

namespace {

struct Binary : Rules<Binary> {
  static constexpr bool in_place = true, point_lanes = true;
  static bool takes_relu(const Op& op) { return op.binary == cpu::Binary::kAdd; }
  static Epilogue epilogue(const Op& op) {
    return op.binary == cpu::Binary::kAdd ? Epilogue::kSum : Epilogue::kNone;
  }

  template <class P>
  static void call(const P& c) {
    c.kernels.binary(c.op.binary, c.size(), c.x(), c.x(1), c.y);
    if (c.op.relu) c.kernels.unary(cpu::Unary::kRelu, 0, 0, c.size(), c.y, c.y);
  }

  static Function function(const Op& op) { return op.binary; }

  static void resident(ResidentStep& s) {
    s.step.kind = resident::Kind::kBinary, s.step.function = static_cast<int32_t>(s.op.binary);
    s.step.y = s.row(s.op.inputs[1], 0);
  }

  static void hessian(HessianSteps& to, const PointStep& from) {
    to.add(hessian::Kind::kBinary, from).function = static_cast<int32_t>(from.op.binary);
  }

  static bool product(const Op& op) { return op.binary == cpu::Binary::kMul; }
  // Of the second input in a sum or a difference.
  static int sign(const Op& op) { return op.binary == cpu::Binary::kSub ? -1 : 1; }

  template <class P>
  static void reverse(const P& p) {
    const int64_t size = p.size();
    auto* dz = p.d(1);
    if (p.op.binary == cpu::Binary::kDiv) {
      // A side that does not depend on theta gets its adjoint into scratch rows of its own.
      auto&& unused = p.spare(p.dx == nullptr || dz == nullptr ? size : 0);
      p.kernels.divide_reverse(size, p.x(1), p.y(), p.dy, p.dx != nullptr ? p.dx : unused.data(),
                               dz != nullptr ? dz : unused.data());
      return;
    }
    const bool times = product(p.op);
    if (p.dx != nullptr)
      p.kernels.product_add(size, 1, p.dy, times ? p.x(1) : nullptr, p.dx);
    if (dz != nullptr)
      p.kernels.product_add(size, sign(p.op), p.dy, times ? p.x(0) : nullptr, dz);
  }

  template <class P>
  static void tangent_forward(const P& p) {
    const int64_t size = p.size();
    const auto* rz = p.r(1);
    if (p.op.binary == cpu::Binary::kDiv)
      return p.kernels.divide_tangent(size, p.x(1), p.y(), p.rx, rz, p.ry);
    const bool times = product(p.op);
    std::fill_n(p.ry, size, 0);
    if (p.rx != nullptr)
      p.kernels.product_add(size, 1, p.rx, times ? p.x(1) : nullptr, p.ry);
    if (rz != nullptr)
      p.kernels.product_add(size, sign(p.op), rz, times ? p.x(0) : nullptr, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    const int64_t size = p.size();
    const auto* rz = p.r(1);
    auto* rdz = p.rd(1);
    if (p.op.binary == cpu::Binary::kDiv) {
      auto&& unused = p.spare(p.rdx == nullptr || rdz == nullptr ? size : 0);
      p.kernels.divide_reverse_tangent(size, p.x(1), p.y(), p.dy, rz, p.ry, p.rdy,
                                       p.rdx != nullptr ? p.rdx : unused.data(),
                                       rdz != nullptr ? rdz : unused.data());
      return;
    }
    const bool times = product(p.op);
    if (p.rdx != nullptr) {
      p.kernels.product_add(size, 1, p.rdy, times ? p.x(1) : nullptr, p.rdx);
      if (times && rz != nullptr) p.kernels.product_add(size, 1, p.dy, rz, p.rdx);
    }
    if (rdz != nullptr) {
      p.kernels.product_add(size, sign(p.op), p.rdy, times ? p.x(0) : nullptr, rdz);
      if (times && p.rx != nullptr) p.kernels.product_add(size, 1, p.dy, p.rx, rdz);
    }
  }
};

}  // namespace

const OpEntry ops::binary = make_entry<Binary>();

}  // namespace pylandscape
