// Eigenvalues of many symmetric matrices of one order, a vector of matrices at a time.
#pragma once
#include <array>

#include "cpu/points.h"
#include "program/program.h"

namespace pylandscape {

constexpr int64_t kMostLanes = 64;  // of a vector, with any instruction set

// One thread's memory; of matrices of order n, `lanes` at a time. They are reduced as they come, and
// solved two vectors at a time: from `start` on, with the results there after `finish`.
class EigenWork {
 public:
  explicit EigenWork(int64_t n);

  void start() { waiting_ = 0; }
  // Matrices (n, n, lanes), of which the lower triangles are read and destroyed; out: the first
  // `count` lanes' eigenvalues (count, n) times `factor`, ascending where that is positive. NaN where a
  // matrix is not finite or `finite` (count,), unless null, says so, and, which has not been seen,
  // where the iteration did not end.
  void take_lanes(double* h, int64_t count, double factor, const bool* finite, double* out);
  // The same of matrices (count, n, n) as they stand, times 1.
  void take_matrices(const double* matrices, int64_t count, double* out);
  void finish();

 private:
  struct Waiting {
    int64_t count = 0;
    double factor = 1;
    std::array<bool, kMostLanes> finite;
    double* out = nullptr;
  };
  void reduce_lanes(double* h);
  void reduce_one(int64_t lane, double* matrix);
  void wait(int64_t count, double factor, const bool* finite, double* out);
  void write(const Waiting& of, int64_t place, unsigned failed);
  double* part(Buffer<double>& of, int64_t size) { return of.data() + waiting_ * size; }

  const cpu::PointKernels& kernels_;
  int64_t n_, stride_;
  bool by_lanes_;  // reduced as lanes, or one by one
  Buffer<double> h_, d_, e_, scale_, work_;
  int64_t waiting_ = 0;
  std::array<Waiting, 2> waits_;
};

// matrices (count, n, n) -> out (count, n). False when stopped.
bool eigenvalues(int64_t count, int64_t n, const double* matrices, double* out,
                 const Parallel& parallel, const ShouldStop& stop);

}  // namespace pylandscape
