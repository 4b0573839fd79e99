// Products and sums whose lanes are points; see points.h. Compiled once per instruction set.
#include "cpu/points.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/vec.inl"

namespace pylandscape::cpu {
namespace {

constexpr int kL = kLanes<double>;
using V = Vec<double, kL>;
using VI = IVec<double, kL>;

inline V at(const double* p) { return load<double, kL>(p); }
inline void put(double* p, V v) { store<double, kL>(p, v); }
inline V all(double x) { return splat<double, kL>(x); }

template <int W>
using Size = std::integral_constant<int, W>;

// f(Size<W>, first) over 0 .. count - 1 in pieces of at most Most, evenly dealt out.
template <int Most, typename F>
inline void in_pieces(int64_t count, F f) {
  const int64_t pieces = (count + Most - 1) / Most;
  for (int64_t p = 0, first = 0; p < pieces; ++p) {
    const int64_t width = (count - first) / (pieces - p);
    if constexpr (Most >= 4)
      if (width == 4) f(Size<4>{}, first);
    if constexpr (Most >= 3)
      if (width == 3) f(Size<3>{}, first);
    if (width == 2) f(Size<2>{}, first);
    if (width == 1) f(Size<1>{}, first);
    first += width;
  }
}

struct Product {
  int64_t samples, k;
  const double* w;
  int64_t row, col;
  const double *x, *bias;
  bool relu, add;
  const double* mask;
  double* y;
};

// Rows r0 .. r0 + R - 1 at samples s .. s + W - 1, which stay in registers.
template <int R, int W>
inline void product_tile(const Product& p, int64_t r0, int64_t s) {
  const int64_t size = p.samples * kL, row = p.row * kL, col = p.col * kL, k = p.k;
  double* const y = p.y + r0 * size + s * kL;
  V acc[R][W];
  if (p.add) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) acc[r][j] = at(y + r * size + j * kL);
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V start = p.bias != nullptr ? at(p.bias + (r0 + r) * kL) : V{};
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) acc[r][j] = start;
    }
  }
  const double *x = p.x + s * kL, *w = p.w + r0 * row;
  for (int64_t i = 0; i < k; ++i, x += size, w += col) {
    V xv[W];
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) xv[j] = at(x + j * kL);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V wv = at(w + r * row);
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) acc[r][j] += wv * xv[j];
    }
  }
  const auto finish = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) put(y + r * size + j * kL, f(acc[r][j], r * size + j * kL));
  };
  if (p.mask != nullptr) {
    const double* mask = p.mask + r0 * size + s * kL;
    finish([&](V v, int64_t to) __attribute__((always_inline)) {
      return at(mask + to) > 0.0 ? v : V{};
    });
  } else if (p.relu) {
    finish([](V v, int64_t) __attribute__((always_inline)) { return vmax(v, V{}); });
  } else {
    finish([](V v, int64_t) __attribute__((always_inline)) { return v; });
  }
}

void linear(int64_t m, int64_t samples, int64_t k, const double* w, int64_t row, int64_t col,
            const double* x, const double* bias, bool relu, bool add, const double* mask,
            double* y) {
  constexpr int kSamples = 4, kHeight = kRegisters == 32 ? 4 : 2;
  const Product p{samples, k, w, row, col, x, bias, relu, add, mask, y};
  in_pieces<kHeight>(m, [&](auto rows, int64_t r0) {
    constexpr int R = decltype(rows)::value;
    int64_t s = 0;
    for (; s + kSamples <= samples; s += kSamples) product_tile<R, kSamples>(p, r0, s);
    for (; s + 2 <= samples; s += 2) product_tile<R, 2>(p, r0, s);
    for (; s < samples; ++s) product_tile<R, 1>(p, r0, s);
  });
}

constexpr int kTile = kRegisters == 32 ? 4 : 3;  // rows and columns of an outer product at once

template <int J, int Q>
inline void outer_put(const OuterArgs& p, int64_t j0, int64_t q0, const V (&sums)[J][Q]) {
  for (int q = 0; q < Q; ++q) {
    double* row = p.h + p.row[q0 + q] * p.n;
    for (int j = 0; j < J; ++j) {
      double* to = row + p.column[j0 + j];
      put(to, at(to) + sums[j][q]);
    }
  }
}

template <int J, int Q, bool Tangent>
inline void outer_tile(const OuterArgs& p, int64_t j0, int64_t q0) {
  V acc[J][Q] = {};
  const int64_t size = p.samples * kL;
  const double *a[J], *x[Q], *rx[Q];
  for (int j = 0; j < J; ++j) a[j] = p.a.row(j0 + j, size);
  for (int q = 0; q < Q; ++q) {
    x[q] = p.x.row(q0 + q, size);
    rx[q] = Tangent ? p.rx.row(q0 + q, size) : nullptr;
  }
  for (int64_t s = 0; s < size; s += kL) {
    const V rd = at(p.rd + s);
    V b[Q];
    for (int q = 0; q < Q; ++q) b[q] = rd * at(x[q] + s);
    if constexpr (Tangent) {
      const V d = at(p.d + s);
      for (int q = 0; q < Q; ++q) b[q] += d * at(rx[q] + s);
    }
    for (int j = 0; j < J; ++j) {
      const V aj = at(a[j] + s);
      for (int q = 0; q < Q; ++q) acc[j][q] += aj * b[q];
    }
  }
  outer_put<J, Q>(p, j0, q0, acc);
}

// The same from b (Q, samples, lanes) = rd x + d rx in scratch.
template <int J, int Q>
inline void outer_from(const OuterArgs& p, int64_t j0, int64_t q0) {
  V acc[J][Q] = {};
  const double* a[J];
  const int64_t size = p.samples * kL;
  for (int j = 0; j < J; ++j) a[j] = p.a.row(j0 + j, size);
  for (int64_t s = 0; s < size; s += kL) {
    V b[Q];
    for (int q = 0; q < Q; ++q) b[q] = at(p.scratch + q * size + s);
    for (int j = 0; j < J; ++j) {
      const V aj = at(a[j] + s);
      for (int q = 0; q < Q; ++q) acc[j][q] += aj * b[q];
    }
  }
  outer_put<J, Q>(p, j0, q0, acc);
}

void outer_add(const OuterArgs& p) {
  const int64_t size = p.samples * kL, rows = p.a.all();
  const bool tangent = p.rx.all() > 0;
  in_pieces<kTile>(p.x.all(), [&](auto cols, int64_t q0) {
    constexpr int Q = decltype(cols)::value;
    if (rows > kTile)
      for (int64_t s = 0; s < size; s += kL) {
        const V rd = at(p.rd + s), d = tangent ? at(p.d + s) : V{};
        for (int q = 0; q < Q; ++q) {
          V b = rd * at(p.x.row(q0 + q, size) + s);
          if (tangent) b += d * at(p.rx.row(q0 + q, size) + s);
          put(p.scratch + q * size + s, b);
        }
      }
    in_pieces<kTile>(rows, [&](auto height, int64_t j0) {
      constexpr int J = decltype(height)::value;
      if (rows > kTile) outer_from<J, Q>(p, j0, q0);
      else if (tangent) outer_tile<J, Q, true>(p, j0, q0);
      else outer_tile<J, Q, false>(p, j0, q0);
    });
  });
}

void dots_add(int64_t samples, int64_t rows, const double* d, const PointInputs& x,
              const int64_t* to, double* g) {
  const int64_t size = samples * kL, cols = x.all();
  in_pieces<kTile>(rows, [&](auto height, int64_t r0) {
    in_pieces<kTile>(cols, [&](auto width, int64_t q0) {
      constexpr int R = decltype(height)::value, Q = decltype(width)::value;
      V acc[R][Q] = {};
      const double* xs[Q];
      for (int q = 0; q < Q; ++q) xs[q] = x.row(q0 + q, size);
      for (int64_t s = 0; s < size; s += kL) {
        V xv[Q];
        for (int q = 0; q < Q; ++q) xv[q] = at(xs[q] + s);
        for (int r = 0; r < R; ++r) {
          const V dv = at(d + (r0 + r) * size + s);
          for (int q = 0; q < Q; ++q) acc[r][q] += dv * xv[q];
        }
      }
      for (int r = 0; r < R; ++r)
        for (int q = 0; q < Q; ++q) {
          double* sum = g + to[(r0 + r) * cols + q0 + q];
          put(sum, at(sum) + acc[r][q]);
        }
    });
  });
}

void sum_add(int64_t samples, const double* x, double* y) {
  V sum{};
  for (int64_t s = 0; s < samples * kL; s += kL) sum += at(x + s);
  put(y, at(y) + sum);
}

void mirror(int64_t n, const int32_t* rank, double* h) {
  constexpr int64_t kBlock = 8;
  for (int64_t i0 = 0; i0 < n; i0 += kBlock)
    for (int64_t j0 = 0; j0 <= i0; j0 += kBlock)
      for (int64_t i = i0; i < std::min(n, i0 + kBlock); ++i)
        for (int64_t j = j0; j < std::min(i, j0 + kBlock); ++j) {
          double *lower = h + (i * n + j) * kL, *upper = h + (j * n + i) * kL;
          if (rank[j] <= rank[i]) put(upper, at(lower));
          else put(lower, at(upper));
        }
}

void to_points(int64_t count, double scale, const double* x, double* y, int64_t step) {
  int64_t i = 0;
  for (; i + kL <= count; i += kL) {
    V block[kL];
#pragma GCC unroll 8
    for (int r = 0; r < kL; ++r) block[r] = at(x + (i + r) * kL) * scale;
    transpose<double>(block);
#pragma GCC unroll 8
    for (int l = 0; l < kL; ++l) put(y + l * step + i, block[l]);
  }
  for (; i < count; ++i)
    for (int l = 0; l < kL; ++l) y[l * step + i] = scale * x[i * kL + l];
}

void walk_step(int64_t n, double longest, double bound, bool stay, const double* u,
               const double* coins, const double* g, double* theta) {
  for (int64_t i = 0; i < n * kL; i += kL) {
    const V length = longest * at(u + i), slope = at(g + i), from = at(theta + i);
    V step = slope > 0.0 ? -length : length;
    if (stay) step = slope == 0.0 ? V{} : step;
    if (coins != nullptr) step = (slope == 0.0) & (at(coins + i) < 0.5) ? -step : step;
    step = slope == slope ? step : slope;
    const V to = from + step;
    step = (to > bound) | (to < -bound) ? -step : step;
    put(theta + i, from + step);
  }
}

}  // namespace
}  // namespace pylandscape::cpu

#include "cpu/tridiagonal.inl"

namespace pylandscape::cpu::PL_ISA_NS {

const PointKernels points = {kL,
                             &linear,
                             &outer_add,
                             &dots_add,
                             &sum_add,
                             &mirror,
                             &to_points,
                             &walk_step,
                             &tridiagonal_lanes,
                             &tridiagonal_one,
                             &tridiagonal_eigenvalues};

}  // namespace pylandscape::cpu::PL_ISA_NS
