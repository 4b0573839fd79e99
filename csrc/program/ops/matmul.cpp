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

// Whether they reach one of the rows twice.
bool meets_twice(const int64_t* outer, int64_t count, int64_t rows, int64_t n1, int64_t step1,
                 int64_t n2, int64_t step2) {
  std::vector<bool> met(rows, false);
  for (int64_t o = 0; o < count; ++o)
    for (int64_t i = 0; i < n1; ++i)
      for (int64_t j = 0; j < n2; ++j) {
        const int64_t row = outer[o] + i * step1 + j * step2;
        if (met[row]) return true;
        met[row] = true;
      }
  return false;
}

}  // namespace

int OpList::matmul(int x, int y, const cpu::MatmulArgs& a, double scale) {
  require(a.outer > 0 && a.m > 0 && a.n > 0 && a.k > 0, "matmul: an operand is empty");
  const int64_t size = a.outer * a.m * a.n;
  require(within(a.x_outer, a.outer, in_features(x), a.m, a.xi, a.k, a.xk) &&
              within(a.y_outer, a.outer, in_features(y), a.k, a.yk, a.n, a.yj) &&
              within(a.z_outer, a.outer, size, a.m, a.zi, a.n, a.zj),
          "matmul: rows out of range");
  require(!meets_twice(a.z_outer, a.outer, size, a.m, a.zi, a.n, a.zj),
          "matmul: the result's rows are not written once each");
  Op op(OpKind::kMatmul, {x, y});
  op.strides = a, op.a = scale, op.outer = a.outer;
  op.x_outer.assign(a.x_outer, a.x_outer + a.outer);
  op.y_outer.assign(a.y_outer, a.y_outer + a.outer);
  op.z_outer.assign(a.z_outer, a.z_outer + a.outer);
  op.repeats[0] = meets_twice(a.x_outer, a.outer, in_features(x), a.m, a.xi, a.k, a.xk);
  op.repeats[1] = meets_twice(a.y_outer, a.outer, in_features(y), a.k, a.yk, a.n, a.yj);
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

  // z = x y or z += x y, in blocks of rows. repeats: whether two of them may be one row of z.
  template <class P, typename T>
  static void multiply(const P& p, const cpu::MatmulArgs& a, bool add, const T* x, const T* y, T* z,
                       bool repeats = false) {
    const auto scale = static_cast<T>(p.op.a);
    const int64_t blocks = (a.m + kBlock - 1) / kBlock;
    const int64_t work = std::min(a.m, kBlock) * a.n * a.k * p.cols;
    if (repeats || !p.shares(a.outer * blocks * work))
      return p.kernels.matmul(a, p.cols, scale, add, x, y, z);
    p.share(a.outer * blocks, work, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t o = block / blocks, row = block % blocks * kBlock;
        const int64_t x_first = a.x_outer[o] + row * a.xi, y_first = a.y_outer[o];
        const int64_t z_first = a.z_outer[o] + row * a.zi;
        cpu::MatmulArgs own = a;
        own.outer = 1, own.m = std::min(kBlock, a.m - row);
        own.x_outer = &x_first, own.y_outer = &y_first, own.z_outer = &z_first;
        p.kernels.matmul(own, p.cols, scale, add, x, y, z);
      }
    });
  }
  static constexpr int64_t kBlock = 32;

  template <class P>
  static void reverse(const P& p) {
    auto* dz = p.d(1);
    if (p.dx != nullptr) multiply(p, matmul_dx(p.op), true, p.dy, p.x(1), p.dx, p.op.repeats[0]);
    if (dz != nullptr) multiply(p, matmul_dy(p.op), true, p.x(0), p.dy, dz, p.op.repeats[1]);
  }

  template <class P>
  static void tangent_forward(const P& p) {  // R(x y) = Rx y + x Ry
    const auto* rz = p.r(1);
    if (p.rx != nullptr) multiply(p, p.op.matmul(), false, p.rx, p.x(1), p.ry);
    if (rz != nullptr) multiply(p, p.op.matmul(), p.rx != nullptr, p.x(0), rz, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    const cpu::MatmulArgs left = matmul_dx(p.op), right = matmul_dy(p.op);
    const bool* repeats = p.op.repeats;
    const auto* rz = p.r(1);
    auto* rdz = p.rd(1);
    if (p.rdx != nullptr) multiply(p, left, true, p.rdy, p.x(1), p.rdx, repeats[0]);
    if (p.rdx != nullptr && rz != nullptr) multiply(p, left, true, p.dy, rz, p.rdx, repeats[0]);
    if (rdz != nullptr) multiply(p, right, true, p.x(0), p.rdy, rdz, repeats[1]);
    if (rdz != nullptr && p.rx != nullptr) multiply(p, right, true, p.rx, p.dy, rdz, repeats[1]);
  }
};

}  // namespace

const OpEntry ops::matmul = make_entry<Matmul>();

}  // namespace pylandscape
