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

  template <typename T>
  static void call(const Call<T>& c) {
    c.kernels.binary(c.op.binary, c.size(), c.x(), c.x(1), c.y);
    if (c.op.relu) c.kernels.unary(cpu::Unary::kRelu, 0, 0, c.size(), c.y, c.y);
  }

  static void resident(ResidentStep& s) {
    s.step.kind = resident::Kind::kBinary, s.step.function = static_cast<int32_t>(s.op.binary);
    s.step.y = s.row(s.op.inputs[1], 0);
  }

  static bool product(const Op& op) { return op.binary == cpu::Binary::kMul; }
  // Of the second input in a sum or a difference.
  template <typename T>
  static T sign(const Op& op) {
    return op.binary == cpu::Binary::kSub ? T(-1) : T(1);
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    const int64_t size = p.size();
    T* dz = p.d(1);
    if (p.op.binary == cpu::Binary::kDiv) {
      // A side that does not depend on theta gets its adjoint into scratch rows of its own.
      std::vector<T> unused(p.dx == nullptr || dz == nullptr ? size : 0);
      p.kernels.divide_reverse(size, p.x(1), p.y(), p.dy, p.dx != nullptr ? p.dx : unused.data(),
                               dz != nullptr ? dz : unused.data());
      return;
    }
    const bool times = product(p.op);
    if (p.dx != nullptr)
      p.kernels.product_add(size, T(1), p.dy, times ? p.x(1) : nullptr, p.dx);
    if (dz != nullptr)
      p.kernels.product_add(size, sign<T>(p.op), p.dy, times ? p.x(0) : nullptr, dz);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    const int64_t size = p.size();
    const T* rz = p.r(1);
    if (p.op.binary == cpu::Binary::kDiv)
      return p.kernels.divide_tangent(size, p.x(1), p.y(), p.rx, rz, p.ry);
    const bool times = product(p.op);
    std::fill_n(p.ry, size, T(0));
    if (p.rx != nullptr)
      p.kernels.product_add(size, T(1), p.rx, times ? p.x(1) : nullptr, p.ry);
    if (rz != nullptr)
      p.kernels.product_add(size, sign<T>(p.op), rz, times ? p.x(0) : nullptr, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    const int64_t size = p.size();
    const T* rz = p.r(1);
    T* rdz = p.rd(1);
    if (p.op.binary == cpu::Binary::kDiv) {
      std::vector<T> unused(p.rdx == nullptr || rdz == nullptr ? size : 0);
      p.kernels.divide_reverse_tangent(size, p.x(1), p.y(), p.dy, rz, p.ry, p.rdy,
                                       p.rdx != nullptr ? p.rdx : unused.data(),
                                       rdz != nullptr ? rdz : unused.data());
      return;
    }
    const bool times = product(p.op);
    if (p.rdx != nullptr) {
      p.kernels.product_add(size, T(1), p.rdy, times ? p.x(1) : nullptr, p.rdx);
      if (times && rz != nullptr) p.kernels.product_add(size, T(1), p.dy, rz, p.rdx);
    }
    if (rdz != nullptr) {
      p.kernels.product_add(size, sign<T>(p.op), p.rdy, times ? p.x(0) : nullptr, rdz);
      if (times && p.rx != nullptr) p.kernels.product_add(size, T(1), p.dy, p.rx, rdz);
    }
  }
};

}  // namespace

const OpEntry ops::binary = make_entry<Binary>();

}  // namespace pylandscape
