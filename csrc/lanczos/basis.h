// Orthogonalisation against a basis that may not fit into any cache.
//
// A step of Gram-Schmidt twice would stream the basis four times: h = Q w, w -= Q^T h, and both
// again. Here the columns are taken in chunks that stay in the L2 cache:
//   project: w = p - (local terms), h = Q w                  one stream
//   remove:  w <- w - Q^T h, and s = Q w of the result       one stream, each chunk read twice
// s is what a second pass would remove: it is measured on the vector itself, not assumed. Where it
// is more than rounding, `remove` runs again with it (near a breakdown), and again, until it is not.
//
// Sums are double, over a fixed split of the columns into chunks and groups of chunks that depends
// on (rows, n) alone: bits do not depend on the threads.
#pragma once
#include "cpu/kernels.h"
#include "program/items.h"

namespace pylandscape {

template <typename B>
class BasisPasses {
 public:
  // One vector's work: its basis Q (rows, n), its w (n,).
  struct Job {
    const B* basis = nullptr;
    int64_t rows = 0;
    B* w = nullptr;
    // project: w = from - sum over rows first_local .. rows-1 with the coefficients `local`, where
    // `from` (n,) is given; then Q w, where it `measures`.
    const double* from = nullptr;
    int64_t first_local = 0;
    std::vector<double> local;
    bool measures = true;
    std::vector<double> in, out;  // remove: h; both: Q w afterwards
    double norm = 0;              // of the new w
  };

  explicit BasisPasses(int64_t n);
  void project(std::vector<Job*>& jobs, const Parallel& parallel);
  // project, then remove what it measured. A basis of one group of columns stays in its core's
  // reach between the two.
  void orthogonalize(std::vector<Job*>& jobs, const Parallel& parallel);
  void remove(std::vector<Job*>& jobs, const Parallel& parallel);
  // w <- w / norm.
  void normalize(std::vector<Job*>& jobs, const Parallel& parallel);
  // q . p for rows q (n,) and double p (n,).
  std::vector<double> dots(const std::vector<std::pair<const B*, const double*>>& pairs,
                           const Parallel& parallel);

  // out (count, n) = C Q for rows q (rows, n) and c (count, rows): sums in double, rounded once. `out`
  // may be `q`.
  void combine(int64_t rows, const B* q, int64_t count, const double* c, B* out,
               const Parallel& parallel) const;
  // out (k, l): x_i . y_j for rows x (k, n) and y (l, n).
  void inner(int64_t k, const B* x, int64_t l, const B* y, double* out,
             const Parallel& parallel) const;

  // Rows a (k, n), k <= n, become orthonormal ones Q with a_j = sum_i r_ij q_i, r (k, k) upper
  // triangular with a diagonal >= 0. Where the rows are dependent, the diagonal is rounding, and q_j
  // some vector orthogonal to the others.
  void orthonormal(int64_t k, B* a, double* r, const Parallel& parallel);

  static constexpr int64_t kGroups = 16;

 private:
  int64_t chunk(int64_t rows) const;
  int64_t begin(int64_t group) const { return n_ * group / groups_ / 64 * 64; }
  int64_t end(int64_t group) const { return group + 1 == groups_ ? n_ : begin(group + 1); }
  void run(std::vector<Job*>& jobs, bool removes, const Parallel& parallel);
  // w <- w - Q^T Q w until Q w is rounding; the coefficients (rows,) gain what was removed.
  void clean(Job& job, std::vector<double>& coefficients, const Parallel& parallel);
  // One group of one job: Q w into sums (rows,); returns the new ||w||^2 of the group.
  double pass(const Job& job, bool removes, int64_t group, std::vector<double>& sums) const;

  const cpu::Kernels<B>& kernels_;
  int64_t n_, groups_;
};

}  // namespace pylandscape
