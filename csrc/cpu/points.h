// Kernels of batched points and of batched symmetric matrices, in double: one table per instruction
// set. `lanes` points (or matrices) are the lanes of a vector, so that no result depends on which
// others are computed with it. A row is (samples, lanes); buffers are 64-byte aligned.
#pragma once
#include <cstdint>

namespace pylandscape::cpu {

// Some rows of (samples, lanes): `count` from `first` on, then `last` unless it is null.
struct PointInputs {
  const double* first;
  int64_t count;
  const double* last;
  int64_t all() const { return count + (last != nullptr ? 1 : 0); }
  const double* row(int64_t q, int64_t size) const { return q < count ? first + q * size : last; }
};

// h[row[q] n + column[j]] += sum_s a_j (rd x_q + d rx_q); without the second term where rx is empty.
struct OuterArgs {
  int64_t samples, n;
  PointInputs a, x, rx;
  const double *rd, *d;
  double* h;
  const int64_t *column, *row;  // of every a, of every x
  double* scratch;              // (4, samples, lanes)
};

struct PointKernels {
  int lanes;
  // y (m, samples, lanes) = W x + bias, or += W x where `add`; then max(., 0) when relu, and zero
  // where `mask` (m, samples, lanes), unless null, is not above zero. Element (r, i) of W is the vector
  // at w + (r * row + i * col) * lanes; bias (m, lanes) or null.
  void (*linear)(int64_t m, int64_t samples, int64_t k, const double* w, int64_t row, int64_t col,
                 const double* x, const double* bias, bool relu, bool add, const double* mask,
                 double* y);
  void (*outer_add)(const OuterArgs& args);
  // g[at[r * cols + q]] += sum_s d_r x_q; d (rows, samples, lanes), x of cols rows.
  void (*dots_add)(int64_t samples, int64_t rows, const double* d, const PointInputs& x,
                   const int64_t* at, double* g);
  // y (lanes,) += the sum over samples of x (samples, lanes).
  void (*sum_add)(int64_t samples, const double* x, double* y);
  // h (n, n, lanes) symmetric: of each pair i, j the one in row i where rank[i] >= rank[j].
  void (*mirror)(int64_t n, const int32_t* rank, double* h);
  // y[l * step + i] = scale x (count, lanes)[i][l].
  void (*to_points)(int64_t count, double scale, const double* x, double* y, int64_t step);
  // theta (n, lanes) += -s u where g > 0, s u where not (0 where g is 0 and `stay`; turned where g is 0
  // and coins are below 1/2, unless null; turned where it would leave [-bound, bound]), NaN where g is.
  void (*walk_step)(int64_t n, double longest, double bound, bool stay, const double* u,
                    const double* coins, const double* g, double* theta);

  // Householder reduction of symmetric matrices whose lower triangles stand in h (n, n, lanes),
  // which is destroyed: diagonals d (n, lanes) and squared off-diagonals e (n, lanes), the last 0.
  // work: (4, n, lanes). Scaled to entries of at most 1 by scale (lanes,), a power of two; what is
  // not finite becomes zero with scale NaN.
  void (*tridiagonal_lanes)(int64_t n, double* h, double* d, double* e, double* scale,
                            double* work);
  // The same for one matrix: h (n rounded up to lanes, `stride`), zero beyond n; d and e (n,) with
  // `lanes` from one element to the next. work: (4, stride).
  void (*tridiagonal_one)(int64_t n, int64_t stride, double* h, double* d, double* e,
                          double* scale, double* work);
  // Eigenvalues, ascending, of two vectors of tridiagonal matrices, in place of d (2, n, lanes); e
  // (2, n, lanes) is destroyed. Bit l of the result: matrix l of the 2 lanes did not converge.
  unsigned (*tridiagonal_eigenvalues)(int64_t n, double* d, double* e);
};

const PointKernels& point_kernels();

#define PL_DECLARE_POINTS(isa) \
  namespace isa {              \
  extern const PointKernels points; \
  }
PL_DECLARE_POINTS(baseline)
PL_DECLARE_POINTS(avx2)
PL_DECLARE_POINTS(avx512)
#undef PL_DECLARE_POINTS

}  // namespace pylandscape::cpu
