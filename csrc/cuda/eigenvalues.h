// Eigenvalues of many small symmetric matrices of one order: Householder reduction to tridiagonal
// form and the rational QL iteration, as on the CPU. All in double.
//
// Floor: n^2 numbers of a matrix read and n written once; 2 n^3 operations of the reduction, which
// updates whole squares (4/3 n^3 would do, on triangles that threads share badly), and about 9 n^2
// of QL, two divisions among nine. A matrix of order <= 32 is a warp's, up to kSharedOrder a
// block's, in its shared memory; beyond that a block works on a copy in device memory. QL is a
// thread's: few matrices leave it bound by latency.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/limits.h"

namespace pylandscape::cuda {

constexpr int64_t kSharedOrder = 105;

// Doubles of `work` for matrices of order n; count matrices.
int64_t eigenvalue_work(int64_t count, int64_t n);

// matrices (count, n, n), of which the lower triangles are read -> out (count, n), ascending. NaN
// where a matrix is not finite, and, which has not been seen, where the iteration did not end. A
// matrix's numbers depend on nothing but the matrix.
cudaError_t eigenvalues(int64_t count, int64_t n, const double* matrices, double* work, double* out,
                        cudaStream_t stream);

}  // namespace pylandscape::cuda
