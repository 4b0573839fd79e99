// matmul: z = scale x y of two values, as matrices (outer, m, k) and (outer, k, n).
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

namespace {

// Whether every row that two strides reach from each of `outer` lies within 0 .. rows - 1.
bool within(const int64_t* outer, int64_t count, int64_t rows, int64_t n1, int64_t step1,
            int64_t n2, int64_t step2) {
  const int64_t a = (n1 - 1) * step1, b = (n2 - 1) * step2;
  const int64_t low = std::min<int64_t>(a, 0) + std::min<int64_t>(b, 0);
  const int64_t high = std::max<int64_t>(a, 0) + std::max<int64_t>(b, 0);
  return std::all_of(outer, outer + count,
                     [&](int64_t o) { return o + low >= 0 && o + high < rows; });
}

}  // namespace

int OpList::matmul(int x, int y, const cpu::MatmulArgs& a, double scale) {
  require(a.outer > 0 && a.m > 0 && a.n > 0 && a.k > 0, "matmul: an operand is empty");
  const int64_t size = a.outer * a.m * a.n;
  require(within(a.x_outer, a.outer, in_features(x), a.m, a.xi, a.k, a.xk) &&
              within(a.y_outer, a.outer, in_features(y), a.k, a.yk, a.n, a.yj) &&
              within(a.z_outer, a.outer, size, a.m, a.zi, a.n, a.zj),
          "matmul: rows out of range");
  std::vector<bool> written(size, false);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t i = 0; i < a.m; ++i)
      for (int64_t j = 0; j < a.n; ++j) written[a.z_outer[o] + i * a.zi + j * a.zj] = true;
  require(std::find(written.begin(), written.end(), false) == written.end(),
          "matmul: the result's rows are not written once each");
  Op op(OpKind::kMatmul, {x, y});
  op.strides = a, op.a = scale, op.outer = a.outer;
  op.x_outer.assign(a.x_outer, a.x_outer + a.outer);
  op.y_outer.assign(a.y_outer, a.y_outer + a.outer);
  op.z_outer.assign(a.z_outer, a.z_outer + a.outer);
  return add(std::move(op), size);
}

namespace {

// Adjoints of z = x y are products again: dx (m, k) += dz y^T, dy (k, n) += x^T dz.
cpu::MatmulArgs matmul_dx(const Op& op) {
  const cpu::MatmulArgs a = op.matmul();
  return {a.outer, a.m, a.k, a.n, a.zi, a.zj, a.yj, a.yk, a.xi, a.xk, a.z_outer, a.y_outer,
          a.x_outer};
}
cpu::MatmulArgs matmul_dy(const Op& op) {
  const cpu::MatmulArgs a = op.matmul();
  return {a.outer, a.k, a.n, a.m, a.xk, a.xi, a.zi, a.zj, a.yk, a.yj, a.x_outer, a.z_outer,
          a.y_outer};
}

struct Matmul : Rules<Matmul> {
  static constexpr bool point_lanes = true;

  template <class P>
  static void call(const P& c) {
    c.kernels.matmul(c.op.matmul(), c.cols, static_cast<typename P::Value>(c.op.a), false, c.x(), c.x(1), c.y);
  }

  static void hessian(HessianSteps& to, const PointStep& from) {
    const cpu::MatmulArgs a = from.op.matmul();
    std::vector<int64_t> list = {a.xi, a.xk, a.yk, a.yj, a.zi, a.zj};
    for (const int64_t* first : {a.x_outer, a.y_outer, a.z_outer})
      list.insert(list.end(), first, first + a.outer);
    hessian::Step& step = to.add(hessian::Kind::kMatmul, from);
    step.relu = 0, step.outer = to.narrow(a.outer), step.index = to.add_list(list);
    step.m = to.narrow(a.m), step.k = to.narrow(a.k), step.inner = to.narrow(a.n);
  }

  template <class P>
  static void reverse(const P& p) {
    const auto scale = static_cast<typename P::Value>(p.op.a);
    auto* dz = p.d(1);
    if (p.dx != nullptr)
      p.kernels.matmul(matmul_dx(p.op), p.cols, scale, true, p.dy, p.x(1), p.dx);
    if (dz != nullptr) p.kernels.matmul(matmul_dy(p.op), p.cols, scale, true, p.x(0), p.dy, dz);
  }

  template <class P>
  static void tangent_forward(const P& p) {  // R(x y) = Rx y + x Ry
    const auto scale = static_cast<typename P::Value>(p.op.a);
    const auto* rz = p.r(1);
    if (p.rx != nullptr)
      p.kernels.matmul(p.op.matmul(), p.cols, scale, false, p.rx, p.x(1), p.ry);
    if (rz != nullptr)
      p.kernels.matmul(p.op.matmul(), p.cols, scale, p.rx != nullptr, p.x(0), rz, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    const auto scale = static_cast<typename P::Value>(p.op.a);
    const cpu::MatmulArgs left = matmul_dx(p.op), right = matmul_dy(p.op);
    const auto* rz = p.r(1);
    auto* rdz = p.rd(1);
    if (p.rdx != nullptr) p.kernels.matmul(left, p.cols, scale, true, p.rdy, p.x(1), p.rdx);
    if (p.rdx != nullptr && rz != nullptr)
      p.kernels.matmul(left, p.cols, scale, true, p.dy, rz, p.rdx);
    if (rdz != nullptr) p.kernels.matmul(right, p.cols, scale, true, p.x(0), p.rdy, rdz);
    if (rdz != nullptr && p.rx != nullptr)
      p.kernels.matmul(right, p.cols, scale, true, p.rx, p.dy, rdz);
  }
};

}  // namespace

const OpEntry ops::matmul = make_entry<Matmul>();

}  // namespace pylandscape
