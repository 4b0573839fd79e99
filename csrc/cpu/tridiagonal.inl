// Eigenvalues of symmetric matrices: Householder reduction to tridiagonal form from the last row up
// (Golub and Van Loan, Matrix Computations, 8.3.1), then the rational QL iteration on squared
// off-diagonals (Pal, Walker and Kahan; Parlett, The Symmetric Eigenvalue Problem, 8.15). Only
// included by points.inl.
//
// The reduction passes over the triangle once per row: the update A <- A - u q^T - q u^T of one
// reflection and the product p = A v of the next go together. A step of QL waits for the one before;
// so two vectors of matrices go through it side by side, and every matrix is at its own eigenvalue.
namespace pylandscape::cpu {
namespace {

// A row whose squares sum to less is clear, as far as a matrix with entries of 1 can tell; 1 / H
// does not overflow.
constexpr double kClear = 1e-100;
constexpr int kMostSweeps = 80;  // per eigenvalue; 2 are usual

inline V root(V x) {
  for (int l = 0; l < kL; ++l) x[l] = __builtin_sqrt(x[l]);
  return x;
}
// Masks of lanes, as the instruction set has them.
#if defined(__AVX512F__)
using Mask = __mmask8;
inline Mask at_most(V x, V y) {
  return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(x), reinterpret_cast<__m512d>(y), _CMP_LE_OQ);
}
inline V pick(Mask mask, V x, V y) {
  return reinterpret_cast<V>(_mm512_mask_blend_pd(mask, reinterpret_cast<__m512d>(y),
                                                  reinterpret_cast<__m512d>(x)));
}
inline bool everywhere(Mask mask) { return mask == 0xff; }
#else
using Mask = VI;
inline Mask at_most(V x, V y) { return x <= y; }
inline V pick(Mask mask, V x, V y) { return mask ? x : y; }
inline bool everywhere(Mask mask) {
#if defined(__AVX2__)
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(mask)) == 0xf;
#else
  int64_t found = -1;
  for (int l = 0; l < kL; ++l) found &= mask[l];
  return found != 0;
#endif
}
#endif
inline double total(V x) {
  double sum = 0;
  for (int l = 0; l < kL; ++l) sum += x[l];
  return sum;
}
// The power of two that brings `top` to at most 1; 1 for zero.
inline double power_below(double top) {
  int exponent = 0;
  std::frexp(top, &exponent);
  return top > 0 ? std::ldexp(1.0, -std::clamp(exponent, -1000, 1000)) : 1.0;
}

// Reflection that clears all of row v (i,) but its last element: v becomes its vector, with
// v[i-1] = f - g and 1 / H = 1 / (|v|^2 / 2) or 0 where there is nothing to clear; e = g^2.
struct Reflection {
  V inverse, square;
};
inline Reflection reflect(V tail, V f, V& last) {
  const V h = tail + f * f, size = root(h);
  const V g = f > 0 ? -size : size;
  const VI some = tail > kClear;
  last = some ? f - g : V{};
  return {some ? 1.0 / (some ? h - f * g : all(1.0)) : V{}, h};
}

constexpr int kSweep = kRegisters == 32 ? 4 : 2;  // rows of a pass at once

// The vectors of one pass; `by` scales the matrix in the first one, which has no reflection to apply.
struct Pass {
  int64_t n;
  double* h;
  const double *u, *q, *v;
  V by;
  double* p;
};

// Rows r .. r + R - 1: A <- A - u q^T - q u^T, and p = A v, of which p[r..] is written and what is
// before is added to. dot += their part of v^T A v.
template <int R, bool First>
inline void sweep_rows(const Pass& a, int64_t r, V& dot) {
  V ur[R], qr[R], vr[R], sum[R] = {}, own[R] = {};
#pragma GCC unroll 4
  for (int k = 0; k < R; ++k) {
    if constexpr (!First) ur[k] = at(a.u + (r + k) * kL), qr[k] = at(a.q + (r + k) * kL);
    vr[k] = at(a.v + (r + k) * kL);
  }
  double* const row = a.h + r * a.n * kL;
  const V by = a.by;
  for (int64_t c = 0; c < r; ++c) {
    V uc{}, qc{};
    if constexpr (!First) uc = at(a.u + c * kL), qc = at(a.q + c * kL);
    const V vc = at(a.v + c * kL);
    V pc = at(a.p + c * kL);
#pragma GCC unroll 4
    for (int k = 0; k < R; ++k) {
      double* to = row + (k * a.n + c) * kL;
      const V x = First ? at(to) * by : at(to) - ur[k] * qc - qr[k] * uc;
      put(to, x);
      sum[k] += x * vc;
      pc += x * vr[k];
    }
    put(a.p + c * kL, pc);
  }
#pragma GCC unroll 4
  for (int k = 0; k < R; ++k)
#pragma GCC unroll 4
    for (int j = 0; j <= k; ++j) {
      double* to = row + (k * a.n + r + j) * kL;
      const V x = First ? at(to) * by : at(to) - ur[k] * qr[j] - qr[k] * ur[j];
      put(to, x);
      own[k] += x * vr[j];
      if (j < k) own[j] += x * vr[k];
    }
#pragma GCC unroll 4
  for (int k = 0; k < R; ++k) {
    put(a.p + (r + k) * kL, sum[k] + own[k]);
    dot += vr[k] * (2.0 * sum[k] + own[k]);
  }
}

template <int R, bool First>
inline void sweep_shorter(int64_t rows, const Pass& a, V& dot) {
  if constexpr (R > 0) {
    if (rows == R) return sweep_rows<R, First>(a, 0, dot);
    sweep_shorter<R - 1, First>(rows, a, dot);
  }
}

// Rows 0 .. i - 1; v^T A v is returned.
template <bool First>
inline V sweep(int64_t i, const Pass& a) {
  V dot{};
  int64_t r = i % kSweep;
  sweep_shorter<kSweep - 1, First>(r, a, dot);
  for (; r < i; r += kSweep) sweep_rows<kSweep, First>(a, r, dot);
  return dot;
}

void tridiagonal_lanes(int64_t n, double* h, double* d, double* e, double* scale, double* work) {
  const int64_t size = n * kL;
  double *u = work, *q = work + size, *v = work + 2 * size, *p = work + 3 * size;
  V top{}, bad{};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const V a = at(h + (i * n + j) * kL), size_of = a < 0 ? -a : a;
      top = top < size_of ? size_of : top;
      bad += a * 0.0;
    }
  const VI fine = bad == 0.0;
  V by{};
  for (int l = 0; l < kL; ++l) by[l] = fine[l] != 0 ? power_below(top[l]) : 1.0;
  put(scale, fine ? by : bad);
  if (!everywhere(at_most(bad, V{})))
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        double* to = h + (i * n + j) * kL;
        put(to, fine ? at(to) : V{});
      }
  put(e + (n - 1) * kL, V{});
  const double* row = h + (n - 1) * n * kL;
  V tail[2] = {};  // of the squares of v left of its last element but one
  for (int64_t c = 0; c < n; ++c) {
    const V a = at(row + c * kL) * by;
    put(v + c * kL, a);
    if (c < n - 2) tail[c % 2] += a * a;
  }
  for (int64_t i = n - 1; i > 0; --i) {
    put(d + i * kL, at(v + i * kL));
    V last;
    const Reflection found = reflect(tail[0] + tail[1], at(v + (i - 1) * kL), last);
    put(e + (i - 1) * kL, found.square);
    put(v + (i - 1) * kL, last);
    const Pass pass{n, h, u, q, v, by, p};
    const V dot = i == n - 1 ? sweep<true>(i, pass) : sweep<false>(i, pass);
    const V inverse = found.inverse, half = 0.5 * dot * inverse * inverse;
    // u = v, q = p / H - half v, and v = row i - 1 of A - u q^T - q u^T.
    std::swap(u, v);
    const V qi = at(p + (i - 1) * kL) * inverse - half * last;
    row = h + (i - 1) * n * kL;
    const auto step = [&](int64_t c) __attribute__((always_inline)) {
      const V uc = at(u + c * kL), qc = at(p + c * kL) * inverse - half * uc;
      const V a = at(row + c * kL) - last * qc - qi * uc;
      put(q + c * kL, qc), put(v + c * kL, a);
      return a * a;
    };
    tail[0] = tail[1] = V{};
    int64_t c = 0;
    for (; c + 2 <= i - 2; c += 2) tail[0] += step(c), tail[1] += step(c + 1);
    for (; c < i - 2; ++c) tail[0] += step(c);
    for (; c < i; ++c) step(c);
  }
  put(d, at(v));
}

void tridiagonal_one(int64_t n, int64_t stride, double* h, double* d, double* e, double* scale,
                     double* work) {
  double *u = work, *q = work + stride, *v = work + 2 * stride, *p = work + 3 * stride;
  double top = 0, bad = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      top = std::max(top, std::abs(h[i * stride + j]));
      bad += h[i * stride + j] * 0.0;
    }
  const bool fine = bad == 0.0;
  const double by = fine ? power_below(top) : 0.0;
  *scale = fine ? by : bad;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double& a = h[i * stride + j];
      a = fine ? a * by : 0.0;
    }
  std::fill_n(work, 4 * stride, 0.0);
  VI lane;
  for (int l = 0; l < kL; ++l) lane[l] = l;
  e[(n - 1) * kL] = 0;
  for (int64_t i = n - 1; i > 0; --i) {
    const double* row = h + i * stride;
    double tail = 0;
    {
      const double ui = u[i], qi = q[i];
      V sum{};
      int64_t c = 0;
      for (; c <= i; c += kL) {
        const V a = at(row + c) - ui * at(q + c) - qi * at(u + c);
        put(v + c, a);
        sum += (lane + c < i - 1) ? a * a : V{};
      }
      d[i * kL] = v[i];
      for (int64_t j = i; j < c; ++j) v[j] = 0;
      tail = total(sum);
    }
    u[i] = q[i] = 0;
    V last;
    const Reflection found = reflect(all(tail), all(v[i - 1]), last);
    e[(i - 1) * kL] = found.square[0];
    v[i - 1] = last[0];
    const int64_t rows = (i + kL - 1) / kL * kL;
    std::fill_n(p, rows, 0.0);
    for (int64_t r = 0; r < rows; r += kL) {
      V sum[kL] = {};
      for (int64_t c = 0; c < r; c += kL) {
        const V uc = at(u + c), qc = at(q + c), vc = at(v + c);
        V pc = at(p + c);
#pragma GCC unroll 8
        for (int k = 0; k < kL; ++k) {
          double* to = h + (r + k) * stride + c;
          const V a = at(to) - u[r + k] * qc - q[r + k] * uc;
          put(to, a);
          sum[k] += a * vc;
          pc += a * v[r + k];
        }
        put(p + c, pc);
      }
      const V uc = at(u + r), qc = at(q + r), vc = at(v + r);
      V pc = at(p + r);
#pragma GCC unroll 8
      for (int k = 0; k < kL; ++k) {
        double* to = h + (r + k) * stride + r;
        const V a = (lane <= k) ? at(to) - u[r + k] * qc - q[r + k] * uc : V{};
        put(to, a);
        sum[k] += a * vc;
        pc += (lane < k) ? a * v[r + k] : V{};
      }
      V ends;
#pragma GCC unroll 8
      for (int k = 0; k < kL; ++k) ends[k] = total(sum[k]);
      put(p + r, pc + ends);
    }
    for (int64_t c = i; c < rows; ++c) p[c] = 0;
    V dot{};
    for (int64_t c = 0; c < rows; c += kL) {
      const V pc = at(p + c) * found.inverse;
      put(p + c, pc);
      dot += at(v + c) * pc;
    }
    const double half = 0.5 * total(dot) * found.inverse[0];
    for (int64_t c = 0; c < rows; c += kL) put(q + c, at(p + c) - half * at(v + c));
    std::swap(u, v);
  }
  d[0] = h[0];
}

// What a sweep carries from row to row stays in registers: all of these are inlined.

// QL on one vector of matrices. A row whose e is zero ends a block: what is above it in a matrix is
// finished, or waits for what is below. The first such block from above gets the shift.
struct Ql {
  double *d, *e;
  V floor;       // squared: what is not above is zero
  V first;       // row of the block's first element; n where all are found
  V upper, lower, off;  // the block's first diagonals, and e between them
  V started;                 // `first` of the sweep under way
  V sigma, gamma, p, s;
  V below;   // the diagonal that came out last
  Mask ran;  // the lanes whose block holds its row

  // The block as rows are passed from below: a row, its diagonal and the one below it, and the mask
  // of the lanes in which e is zero there.
  PL_INLINE void meet(Mask zero, V row, V diagonal, V next, V square) {
    first = pick(zero, first, row);
    upper = pick(zero, upper, diagonal), lower = pick(zero, lower, next);
    off = pick(zero, off, square);
  }
  PL_INLINE void forget(int64_t n) { first = all(double(n)), upper = lower = V{}, off = all(1.0); }
};

constexpr double kHalfUlp = 1.1102230246251565e-16;
constexpr double kNothing = 1e-70;  // keeps gamma from zero, in matrices whose largest entry is about 1

// Returns the first row of all lanes' blocks.
PL_INLINE int64_t begin_ql(int64_t n, Ql& a) {
  V most{};
  for (int64_t i = 0; i < n; ++i) {
    const V v = at(a.d + i * kL), off = at(a.e + i * kL), square = v * v;
    most = most < square ? square : most;
    most = most < off ? off : most;
  }
  a.floor = kHalfUlp * kHalfUlp * most;
  a.forget(n);
  int64_t top = n;
  for (int64_t i = n - 2; i >= 0; --i) {
    V off = at(a.e + i * kL);
    const Mask zero = at_most(off, a.floor);
    off = pick(zero, V{}, off);
    put(a.e + i * kL, off);
    a.meet(zero, all(double(i)), at(a.d + i * kL), at(a.d + (i + 1) * kL), off);
    if (!everywhere(zero)) top = i;
  }
  return top;
}

// Wilkinson's shift, and the last row.
PL_INLINE void begin_sweep(int64_t n, Ql& a) {
  const V half = 0.5 * (a.lower - a.upper), r = root(half * half + a.off);
  a.sigma = a.upper - a.off / (half + (half < 0 ? -r : r));
  a.gamma = at(a.d + (n - 1) * kL) - a.sigma + kNothing;
  a.p = a.gamma * a.gamma;
  a.s = a.below = V{};
  a.started = a.first;
  a.ran = at_most(a.started, all(double(n - 1)));
  a.forget(n);
}

// Row i, of which d and e of row i + 1 come out. With p = gamma^2 / c, which is never zero:
//   r = p + e_i, e_{i+1} <- s r, c <- p / r, s <- e_i / r,
//   gamma' = c (d_i - sigma) - s gamma, d_{i+1} <- gamma + (d_i - gamma'), p <- gamma'^2 r / p.
// Finished rows keep their bits. row: i in every lane. True where e_{i+1} is zero in all lanes.
PL_INLINE bool ql_step(int64_t i, V row, Ql& a) {
  const V e = at(a.e + i * kL), d = at(a.d + i * kL), r = a.p + e;
  const V inverse = 1.0 / r, growth = r / a.p, c = a.p * inverse;
  V off = a.s * r;
  const Mask zero = at_most(off, a.floor), runs = at_most(a.started, row);
  off = pick(zero, V{}, off);
  put(a.e + (i + 1) * kL, off);
  a.s = e * inverse;
  const V old = a.gamma;
  a.gamma = c * (d - a.sigma) - a.s * old + kNothing;
  a.p = a.gamma * a.gamma * growth;
  const V moved = old + pick(runs, d - a.gamma, a.sigma);
  const V next = pick(a.ran, moved, at(a.d + (i + 1) * kL));
  put(a.d + (i + 1) * kL, next);
  a.meet(zero, row + 1.0, next, a.below, off);
  a.below = next, a.ran = runs;
  return everywhere(zero);
}

// The block's first row. True where nothing is left there.
PL_INLINE bool end_sweep(int64_t i, Ql& a) {
  V off = a.s * a.p;
  const Mask zero = at_most(off, a.floor);
  off = pick(zero, V{}, off);
  put(a.e + i * kL, off);
  const V last = pick(a.ran, a.sigma + a.gamma, at(a.d + i * kL));
  put(a.d + i * kL, last);
  a.meet(zero, all(double(i)), last, a.below, off);
  return everywhere(zero);
}

// Ascending in each lane: Batcher's odd-even merge sort, whose exchanges do not depend on the values.
void sort_lanes(int64_t n, double* d) {
  for (int64_t run = 1; run < n; run *= 2)
    for (int64_t step = run; step > 0; step /= 2)
      for (int64_t first = step % run; first + step < n; first += 2 * step)
        for (int64_t i = first; i < std::min(first + step, n - step); ++i) {
          if (((i ^ (i + step)) & -(2 * run)) != 0) continue;  // of two runs that are not merged
          const V x = at(d + i * kL), y = at(d + (i + step) * kL);
          put(d + i * kL, y < x ? y : x), put(d + (i + step) * kL, y < x ? x : y);
        }
}

unsigned tridiagonal_eigenvalues(int64_t n, double* d, double* e) {
  Ql x, y;
  x.d = d, x.e = e, y.d = d + n * kL, y.e = e + n * kL;
  int64_t top = begin_ql(n, x);
  top = std::min(top, begin_ql(n, y));
  for (int64_t sweeps = 0; top < n && sweeps < kMostSweeps * n; ++sweeps) {
    begin_sweep(n, x), begin_sweep(n, y);
    int64_t next = n;
    V row = all(double(n - 2));
    for (int64_t i = n - 2; i >= top; --i, row -= 1.0) {
      const bool first = ql_step(i, row, x), second = ql_step(i, row, y);
      next = first && second ? next : i + 1;
    }
    const bool first = end_sweep(top, x), second = end_sweep(top, y);
    top = first && second ? next : top;
  }
  unsigned bits = 0;
  for (int l = 0; l < kL; ++l) {
    bits |= x.first[l] < double(n) ? 1u << l : 0u;
    bits |= y.first[l] < double(n) ? 1u << (kL + l) : 0u;
  }
  sort_lanes(n, x.d), sort_lanes(n, y.d);
  return bits;
}

}  // namespace
}  // namespace pylandscape::cpu
