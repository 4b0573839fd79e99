// The implicit QL iteration with Wilkinson's shift (Dubrulle, Martin and Wilkinson 1968; Golub and Van
// Loan, Matrix Computations, 8.3.5). Each rotation of rows i and i + 1 of the matrix turns the same
// two rows of what becomes the eigenvectors.
#include "lanczos/tridiagonal.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace pylandscape {
namespace {

constexpr int kMostSweeps = 80;  // per eigenvalue; 2 are usual

// The last row of the block that begins at l.
int64_t end_of_block(int64_t n, int64_t l, const double* d, const double* e, double tiny) {
  constexpr double kEps = std::numeric_limits<double>::epsilon() / 2;
  int64_t m = l;
  while (m + 1 < n && !(std::abs(e[m]) <= kEps * (std::abs(d[m]) + std::abs(d[m + 1])) + tiny)) ++m;
  return m;
}

}  // namespace

bool tridiagonal_eigen(int64_t n, double* d, double* e, int64_t rows, double* z) {
  constexpr double kEps = std::numeric_limits<double>::epsilon();
  double top = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(d[i]) || (i + 1 < n && !std::isfinite(e[i]))) return false;
    top = std::max({top, std::abs(d[i]), i + 1 < n ? std::abs(e[i]) : 0.0});
  }
  int exponent = 0;  // entries of at most 1: no square overflows, and one that vanishes is rounding
  std::frexp(top, &exponent);
  for (int64_t i = 0; i < n; ++i) d[i] = std::ldexp(d[i], -exponent);
  for (int64_t i = 0; i < n; ++i) e[i] = i + 1 < n ? std::ldexp(e[i], -exponent) : 0.0;
  const double tiny = kEps * kEps;
  for (int64_t l = 0; l < n; ++l) {
    for (int sweep = 0;; ++sweep) {
      const int64_t m = end_of_block(n, l, d, e, tiny);
      if (m == l) break;
      if (sweep == kMostSweeps) return false;
      const double half = (d[l + 1] - d[l]) / (2 * e[l]), root = std::sqrt(half * half + 1);
      double g = d[m] - d[l] + e[l] / (half + std::copysign(root, half));
      double s = 1, c = 1, p = 0;
      int64_t i = m - 1;
      for (; i >= l; --i) {
        const double f = s * e[i], b = c * e[i], r = std::sqrt(f * f + g * g);
        e[i + 1] = r;
        if (r == 0) {  // the block falls apart here
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r, c = g / r;
        g = d[i + 1] - p;
        const double t = (d[i] - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        double *__restrict__ low = z + i * rows, *__restrict__ high = low + rows;
        for (int64_t k = 0; k < rows; ++k) {
          const double a = low[k], h = high[k];
          high[k] = s * a + c * h;
          low[k] = c * a - s * h;
        }
      }
      if (i >= l) continue;
      d[l] -= p, e[l] = g, e[m] = 0;
    }
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return d[a] < d[b]; });
  const std::vector<double> values(d, d + n), vectors(z, z + n * rows);
  for (int64_t i = 0; i < n; ++i) {
    d[i] = std::ldexp(values[order[i]], exponent);
    std::copy_n(vectors.data() + order[i] * rows, rows, z + i * rows);
  }
  return true;
}

}  // namespace pylandscape
