// Values and adjoints of a small network in one column: one sample at one point. A thread owns its
// column, so nothing waits. dy: adjoint of y. With hessian_tangents.cuh the twin of
// points/point_passes.cpp.
#pragma once
#include "common/hessian.h"
#include "cuda/loss_slopes.cuh"

namespace pylandscape::cuda {

using hessian::Kind;
using hessian::Program;
using hessian::Step;

// By index and not by pointer, so that every access is one of shared memory.
__device__ inline double& shared_number(int32_t i) {
  return reinterpret_cast<double*>(dynamic_shared())[i];
}

struct alignas(16) Pair {
  double a, b;
};
// Numbers i and i + 1, i even.
__device__ inline Pair shared_pair(int32_t i) {
  return reinterpret_cast<const Pair*>(dynamic_shared())[i / 2];
}

// Row r of some shared memory, in this thread's column.
struct Rows {
  int32_t first, stride;
  __device__ double& operator()(int32_t r) const { return shared_number(first + r * stride); }
};

struct Column {
  const Program& p;
  const int32_t* list;
  int32_t base;            // theta, then the constants
  Rows v, d, rv, rd;       // values, adjoints, and their tangents
  Rows slope, curve, kept;
  // Rows below it have no tangent: nothing there depends on the directions.
  int32_t low;

  __device__ double source(int32_t i) const { return shared_number(base + i); }
  __device__ bool bends(int32_t row) const { return row >= low; }
};

// out rows = (or +=) bias + W in, element (r, i) of W at w + r * row + i * column; no bias below 0.
template <bool kAdd>
__device__ void multiply(int32_t m, int32_t k, int32_t w, int32_t row, int32_t column,
                         const Rows& in, int32_t x, int32_t bias, const Rows& out, int32_t y) {
  constexpr int kRows = 4;
  for (int32_t first = 0; first < m; first += kRows) {
    double sum[kRows];
    int32_t at[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int32_t own = first + r < m ? first + r : m - 1;
      at[r] = w + own * row;
      sum[r] = kAdd ? out(y + own) : bias >= 0 ? shared_number(bias + own) : 0.0;
    }
    for (int32_t i = 0; i < k; ++i) {
      const double value = in(x + i);
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += shared_number(at[r] + i * column) * value;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (first + r < m) out(y + first + r) = sum[r];
  }
}

// Group o of a norm: z = (x - mean) scale, scale = 1 / sqrt(variance + eps) (cpu/reverse.inl).
struct NormGroup {
  const Step& s;
  const Rows& v;
  int32_t group, width;
  double mean, scale;
  __device__ NormGroup(const Step& step, const Rows& values, int32_t o)
      : s(step), v(values), group(o), width(step.k / step.inner), mean(0), scale(0) {
    for (int32_t f = 0; f < s.k; ++f) mean += x(f);
    mean /= double(s.k);
    double variance = 0;
    for (int32_t f = 0; f < s.k; ++f) variance += (x(f) - mean) * (x(f) - mean);
    scale = 1.0 / sqrt(variance / double(s.k) + s.a);
  }
  __device__ int32_t at(int32_t f) const {
    return (f / width * s.outer + group) * width + f % width;
  }
  __device__ double x(int32_t f) const { return v(s.x + at(f)); }
  __device__ double z(int32_t f) const { return (x(f) - mean) * scale; }
};

// f(first row) of every group of a softmax.
template <typename F>
__device__ void each_softmax(const Step& s, F f) {
  for (int32_t j = 0; j < s.outer * s.inner; ++j)
    f(j / s.inner * s.k * s.inner + j % s.inner);
}

__device__ inline double probability(const Step& s, double y) { return s.log != 0 ? exp(y) : y; }

// f(z, x, y) for the rows of each product of a matmul step.
template <typename F>
__device__ void each_product(const Column& c, const Step& s, F f) {
  const int32_t* const stride = c.list + s.index;
  const int32_t *const x = stride + 6, *const y = x + s.outer, *const z = y + s.outer;
  for (int32_t o = 0; o < s.outer; ++o)
    for (int32_t e = 0; e < s.m * s.inner; ++e) {
      const int32_t i = e / s.inner, j = e % s.inner;
      for (int32_t k = 0; k < s.k; ++k)
        f(s.out + z[o] + i * stride[4] + j * stride[5], s.x + x[o] + i * stride[0] + k * stride[1],
          s.y + y[o] + k * stride[2] + j * stride[3]);
    }
}

// What relu let nothing through of: rows of the output of s.
__device__ inline int32_t output_rows(const Step& s) {
  return s.kind == Kind::kLinear ? s.outer * s.m
         : s.kind == Kind::kMatmul ? s.outer * s.m * s.inner
                                   : s.m;
}
__device__ inline void mask(const Column& c, const Step& s, const Rows& x) {
  if (s.relu == 0) return;
  for (int32_t r = 0; r < output_rows(s); ++r)
    if (!(c.v(s.out + r) > 0)) x(s.out + r) = 0;
}

__device__ inline void softmax_forward(const Column& c, const Step& s) {
  each_softmax(s, [&](int32_t first) {
    double top = c.v(s.x + first), sum = 0;
    for (int32_t f = 1; f < s.k; ++f) {
      const double x = c.v(s.x + first + f * s.inner);
      top = x > top ? x : top;
    }
    for (int32_t f = 0; f < s.k; ++f) {
      const int32_t r = first + f * s.inner;
      const double e = exp(c.v(s.x + r) - top);
      c.v(s.out + r) = e, sum += e;
    }
    const double share = 1.0 / sum, shift = log(sum);
    for (int32_t f = 0; f < s.k; ++f) {
      const int32_t r = first + f * s.inner;
      c.v(s.out + r) = s.log != 0 ? (c.v(s.x + r) - top) - shift : c.v(s.out + r) * share;
    }
  });
}

__device__ inline void forward_step(const Column& c, const Step& s) {
  switch (s.kind) {
    case Kind::kLinear:
      for (int32_t o = 0; o < s.outer; ++o)
        multiply<false>(s.m, s.k, c.base + s.weight, s.row, s.column, c.v, s.x + o * s.k,
                        s.bias < 0 ? -1 : c.base + s.bias, c.v, s.out + o * s.m);
      break;
    case Kind::kUnary: {
      const auto function = static_cast<cpu::Unary>(s.function);
      with_unary<double, false>(function, s.a, s.b, [&](auto f) {
        for (int32_t r = 0; r < s.m; ++r) c.v(s.out + r) = f(c.v(s.x + r));
      });
      if (s.moves == 0) break;
      with_unary_derivatives<double, false>(function, s.a, s.b, [&](auto f) {
        for (int32_t r = 0; r < s.m; ++r) f(c.v(s.x + r), c.slope(s.bent + r), c.curve(s.bent + r));
      });
      break;
    }
    case Kind::kBinary:
      with_binary<double>(static_cast<cpu::Binary>(s.function), [&](auto f) {
        for (int32_t r = 0; r < s.m; ++r) c.v(s.out + r) = f(c.v(s.x + r), c.v(s.y + r));
      });
      break;
    case Kind::kAffine:
      for (int32_t r = 0; r < s.m; ++r)
        c.v(s.out + r) =
            c.v(s.x + r) * c.source(s.weight + r % s.k) + c.source(s.bias + r % s.k);
      break;
    case Kind::kNorm:
      for (int32_t o = 0; o < s.outer; ++o) {
        const NormGroup g(s, c.v, o);
        for (int32_t f = 0; f < s.k; ++f) c.v(s.out + g.at(f)) = g.z(f);
      }
      break;
    case Kind::kSoftmax: softmax_forward(c, s); break;
    case Kind::kGather:
      for (int32_t r = 0; r < s.m; ++r) {
        const int32_t from = c.list[s.index + r];
        c.v(s.out + r) = from == hessian::kFill ? s.a : c.v(from);
      }
      break;
    case Kind::kSum:
      for (int32_t r = 0; r < s.m; ++r) {
        const int32_t o = r / s.k, *bounds = c.list + s.index, *rows = bounds + s.outer + 1;
        double sum = 0;
        for (int32_t i = bounds[o]; i < bounds[o + 1]; ++i) sum += c.v(rows[i] + r % s.k);
        c.v(s.out + r) = c.source(s.weight + o) * sum;
      }
      break;
    case Kind::kMatmul:
      for (int32_t r = 0; r < output_rows(s); ++r) c.v(s.out + r) = 0;
      each_product(c, s, [&](int32_t z, int32_t x, int32_t y) { c.v(z) += s.a * c.v(x) * c.v(y); });
      break;
  }
  if (s.relu != 0)
    for (int32_t r = 0; r < output_rows(s); ++r) c.v(s.out + r) = relu(c.v(s.out + r));
}

// The inputs' adjoints += those that follow from dy with parameters and values as they are; `to`
// are rows of adjoints (or of their tangents), of those from `low` on.
__device__ inline void pull(const Column& c, const Step& s, const Rows& to, int32_t low) {
  const bool x = s.x >= low;
  switch (s.kind) {
    case Kind::kLinear:
      for (int32_t o = 0; x && o < s.outer; ++o)
        multiply<true>(s.k, s.m, c.base + s.weight, s.column, s.row, to, s.out + o * s.m, -1, to,
                       s.x + o * s.k);
      return;
    case Kind::kUnary:
      for (int32_t r = 0; x && r < s.m; ++r) to(s.x + r) += c.slope(s.bent + r) * to(s.out + r);
      return;
    case Kind::kBinary: {
      const auto function = static_cast<cpu::Binary>(s.function);
      const bool y = s.y >= low;
      for (int32_t r = 0; r < s.m; ++r) {
        const double dy = to(s.out + r);
        double dx = dy, dz = dy;
        if (function == cpu::Binary::kSub) dz = -dy;
        if (function == cpu::Binary::kMul) dx = dy * c.v(s.y + r), dz = dy * c.v(s.x + r);
        if (function == cpu::Binary::kDiv) dx = dy / c.v(s.y + r), dz = -dx * c.v(s.out + r);
        if (x) to(s.x + r) += dx;
        if (y) to(s.y + r) += dz;
      }
      return;
    }
    case Kind::kAffine:
      for (int32_t r = 0; x && r < s.m; ++r)
        to(s.x + r) += c.source(s.weight + r % s.k) * to(s.out + r);
      return;
    case Kind::kNorm:
      for (int32_t o = 0; x && o < s.outer; ++o) {
        const NormGroup g(s, c.v, o);
        double mean = 0, dot = 0;
        for (int32_t f = 0; f < s.k; ++f) {
          const double dy = to(s.out + g.at(f));
          mean += dy, dot += dy * g.z(f);
        }
        mean /= double(s.k), dot /= double(s.k);
        for (int32_t f = 0; f < s.k; ++f)
          to(s.x + g.at(f)) += g.scale * (to(s.out + g.at(f)) - mean - g.z(f) * dot);
      }
      return;
    case Kind::kSoftmax:
      if (!x) return;
      each_softmax(s, [&](int32_t first) {
        double sum = 0;
        for (int32_t f = 0; f < s.k; ++f) {
          const int32_t r = first + f * s.inner;
          sum += s.log != 0 ? to(s.out + r) : to(s.out + r) * c.v(s.out + r);
        }
        for (int32_t f = 0; f < s.k; ++f) {
          const int32_t r = first + f * s.inner;
          const double dy = to(s.out + r), p = probability(s, c.v(s.out + r));
          to(s.x + r) += s.log != 0 ? dy - p * sum : p * (dy - sum);
        }
      });
      return;
    case Kind::kGather:
      for (int32_t r = 0; r < s.m; ++r) {
        const int32_t from = c.list[s.index + r];
        if (from >= low) to(from) += to(s.out + r);
      }
      return;
    case Kind::kSum:
      for (int32_t r = 0; x && r < s.m; ++r) {
        const int32_t o = r / s.k, *bounds = c.list + s.index, *rows = bounds + s.outer + 1;
        const double dy = c.source(s.weight + o) * to(s.out + r);
        for (int32_t i = bounds[o]; i < bounds[o + 1]; ++i) to(rows[i] + r % s.k) += dy;
      }
      return;
    case Kind::kMatmul:
      each_product(c, s, [&](int32_t z, int32_t i, int32_t j) {
        const double dz = s.a * to(z);
        if (x) to(i) += dz * c.v(j);
        if (s.y >= low) to(j) += dz * c.v(i);
      });
      return;
  }
}

// Values and the loss' slopes; then the adjoints of all rows that a step makes. Returns the loss.
__device__ inline double forward(const Column& c, const DeviceTargets& targets, int64_t sample) {
  for (int32_t i = 0; i < c.p.steps; ++i) forward_step(c, c.p.step[i]);
  const auto output = [&](int64_t f) { return c.v(c.p.output + static_cast<int32_t>(f)); };
  return column_terms(c.p.loss, targets, sample, false, output).loss;
}

__device__ inline void reverse(const Column& c, const DeviceTargets& targets, int64_t sample) {
  const Program& p = c.p;
  for (int32_t r = p.first; r < p.rows; ++r) c.d(r) = 0;
  column_slopes(
      p.loss, targets, sample, [&](int64_t f) { return c.v(p.output + static_cast<int32_t>(f)); },
      [&](int64_t f, double d) { c.d(p.output + static_cast<int32_t>(f)) = d; },
      [&](int64_t i, double k) { c.kept(static_cast<int32_t>(i)) = k; });
  for (int32_t i = p.steps - 1; i >= 0; --i) {
    const Step& s = p.step[i];
    if (s.moves == 0) continue;
    mask(c, s, c.d);
    pull(c, s, c.d, p.first);
    if (s.kind == Kind::kUnary)  // f'' dy, met by every tangent
      for (int32_t r = 0; r < s.m; ++r) c.curve(s.bent + r) *= c.d(s.out + r);
  }
}

}  // namespace pylandscape::cuda
