// Eigenvalues of symmetric matrices: Householder reduction to tridiagonal form from the last row up
// (Golub and Van Loan, Matrix Computations, 8.3.1), then the rational QL iteration on squared
// off-diagonals (Pal, Walker and Kahan; Parlett, The Symmetric Eigenvalue Problem, 8.15). Only
// included by points.inl.
//
// The reduction passes over the triangle once per row: the update A <- A - u q^T - q u^T of one
// reflection and the product p = A v of the next go together.
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
inline bool any(VI mask) {  // of all-zeros and all-ones lanes
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(mask)) != 0;
#else
  int64_t found = 0;
  for (int l = 0; l < kL; ++l) found |= mask[l];
  return found != 0;
#endif
}
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

// Rows r .. r + R - 1 of the pass, left of the diagonal block; returns with p[r..] complete but for
// that block.
template <int R>
inline void sweep_rows(int64_t n, int64_t r, double* h, const double* u, const double* q,
                       const double* v, double* p) {
  V ur[R], qr[R], vr[R], sum[R] = {};
  for (int k = 0; k < R; ++k)
    ur[k] = at(u + (r + k) * kL), qr[k] = at(q + (r + k) * kL), vr[k] = at(v + (r + k) * kL);
  for (int64_t c = 0; c < r; ++c) {
    const V uc = at(u + c * kL), qc = at(q + c * kL), vc = at(v + c * kL);
    V pc = at(p + c * kL);
    for (int k = 0; k < R; ++k) {
      double* to = h + ((r + k) * n + c) * kL;
      const V a = at(to) - ur[k] * qc - qr[k] * uc;
      put(to, a);
      sum[k] += a * vc;
      pc += a * vr[k];
    }
    put(p + c * kL, pc);
  }
  for (int k = 0; k < R; ++k) put(p + (r + k) * kL, at(p + (r + k) * kL) + sum[k]);
  for (int k = 0; k < R; ++k)
    for (int j = 0; j <= k; ++j) {
      double* to = h + ((r + k) * n + r + j) * kL;
      const V a = at(to) - ur[k] * at(q + (r + j) * kL) - qr[k] * at(u + (r + j) * kL);
      put(to, a);
      put(p + (r + k) * kL, at(p + (r + k) * kL) + a * at(v + (r + j) * kL));
      if (j < k) put(p + (r + j) * kL, at(p + (r + j) * kL) + a * vr[k]);
    }
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
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double* to = h + (i * n + j) * kL;
      put(to, fine ? at(to) * by : V{});
    }
  std::fill_n(u, size, 0.0), std::fill_n(q, size, 0.0), std::fill_n(e, size, 0.0);
  for (int64_t i = n - 1; i > 0; --i) {
    double* row = h + i * n * kL;
    const V ui = at(u + i * kL), qi = at(q + i * kL);
    V tail{};
    for (int64_t c = 0; c <= i; ++c) {
      const V a = at(row + c * kL) - ui * at(q + c * kL) - qi * at(u + c * kL);
      put(v + c * kL, a);
      if (c < i - 1) tail += a * a;
    }
    put(d + i * kL, at(v + i * kL));
    V last;
    const Reflection found = reflect(tail, at(v + (i - 1) * kL), last);
    put(e + (i - 1) * kL, found.square);
    put(v + (i - 1) * kL, last);
    std::fill_n(p, i * kL, 0.0);
    int64_t r = 0;
    for (; r + 4 <= i; r += 4) sweep_rows<4>(n, r, h, u, q, v, p);
    for (; r < i; ++r) sweep_rows<1>(n, r, h, u, q, v, p);
    V dot{};
    for (int64_t c = 0; c < i; ++c) {
      const V pc = at(p + c * kL) * found.inverse;
      put(p + c * kL, pc);
      dot += at(v + c * kL) * pc;
    }
    const V half = 0.5 * dot * found.inverse;
    for (int64_t c = 0; c < i; ++c) put(q + c * kL, at(p + c * kL) - half * at(v + c * kL));
    std::swap(u, v);
  }
  put(d, at(h));
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

// All lanes step through the same rows; a lane whose block [l, m] ends earlier joins in at m.
unsigned tridiagonal_eigenvalues(int64_t n, double* d, double* e) {
  constexpr double kEps = 1.1102230246251565e-16;  // half an ulp of 1
  V top{};
  for (int64_t i = 0; i < n; ++i) {
    const V v = at(d + i * kL), size = v < 0 ? -v : v, off = root(at(e + i * kL));
    top = top < size ? size : top;
    top = top < off ? off : top;
  }
  const V floor = (0.5 * kEps * top) * (0.5 * kEps * top);
  const auto negligible = [&](int64_t i) __attribute__((always_inline)) {
    const V v = at(e + i * kL), product = at(d + i * kL) * at(d + (i + 1) * kL);
    const V size = product < 0 ? -product : product;
    const VI found = (v <= floor) | (v <= kEps * kEps * size);
    return found;
  };
  VI failed{};
  for (int64_t l = 0; l + 1 < n; ++l) {
    for (int sweep = 0;; ++sweep) {
      VI m = VI{} - 1, open = ~VI{};
      int64_t end = l;
      for (; end + 1 < n; ++end) {
        const VI stop = open & negligible(end);
        m = stop ? VI{} + end : m;
        open &= ~stop;
        if (!any(open)) break;
      }
      m = open ? VI{} + (n - 1) : m;
      const VI active = (m > l) & ~failed;
      if (!any(active)) break;
      if (sweep == kMostSweeps) {
        failed |= active;
        break;
      }
      const V dl = at(d + l * kL), rte = root(at(e + l * kL));
      V sigma = (at(d + (l + 1) * kL) - dl) / (2.0 * (active ? rte : all(1.0)));
      const V r = root(sigma * sigma + 1.0);
      sigma = dl - rte / (sigma + (sigma < 0 ? -r : r));
      V c = all(1.0), s{}, gamma{}, p{};
      for (int64_t i = end - 1; i >= l; --i) {
        const VI start = m == i + 1, run = active & (m > i);
        const V below = at(d + (i + 1) * kL) - sigma;
        c = start ? all(1.0) : c, s = start ? V{} : s;
        gamma = start ? below : gamma, p = start ? below * below : p;
        const V bb = at(e + i * kL), sum = p + bb;  // lanes that do not run may hold anything
        put(e + (i + 1) * kL, (run & ~start) ? s * sum : at(e + (i + 1) * kL));
        const V old_c = c, old_gamma = gamma, alpha = at(d + i * kL);
        c = p / sum, s = bb / sum;  // divided, not multiplied by 1 / sum, so that c + s = 1 to eps
        gamma = c * (alpha - sigma) - s * old_gamma;
        put(d + (i + 1) * kL, run ? old_gamma + (alpha - gamma) : at(d + (i + 1) * kL));
        const V next = gamma * gamma / c;
        p = c == 0.0 ? old_c * bb : next;
      }
      put(e + l * kL, active ? s * p : at(e + l * kL));
      put(d + l * kL, active ? sigma + gamma : dl);
    }
  }
  unsigned bits = 0;
  for (int l = 0; l < kL; ++l) bits |= failed[l] != 0 ? 1u << l : 0u;
  return bits;
}

}  // namespace
}  // namespace pylandscape::cpu
