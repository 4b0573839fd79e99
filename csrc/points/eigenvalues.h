// Eigenvalues of many symmetric matrices of one order, a vector of matrices at a time.
#pragma once
#include "cpu/points.h"
#include "program/program.h"

namespace pylandscape {

// One thread's memory; of matrices of order n, `lanes` at a time.
class EigenWork {
 public:
  explicit EigenWork(int64_t n);

  // Matrices (n, n, lanes), of which the lower triangles are read and destroyed; out: the first
  // `count` lanes' eigenvalues (count, n), ascending. NaN where a matrix is not finite, and, which
  // has not been seen, where the iteration did not end.
  void from_lanes(double* h, int64_t count, double* out);
  // The same of matrices (count, n, n) as they stand.
  void from_matrices(const double* matrices, int64_t count, double* out);

 private:
  void solve(int64_t count, double* out);
  void reduce_one(int64_t lane, double* matrix);

  const cpu::PointKernels& kernels_;
  int64_t n_, stride_;
  bool lanes_;  // reduced as lanes, or one by one
  Buffer<double> h_, d_, e_, scale_, work_;
};

// matrices (count, n, n) -> out (count, n). False when stopped.
bool eigenvalues(int64_t count, int64_t n, const double* matrices, double* out,
                 const Parallel& parallel, const ShouldStop& stop);

}  // namespace pylandscape
