// Reorthogonalisation against a basis in device memory: one stream of it a pass. Pointers are device
// memory; work is put on `stream` and not waited for.
//
// One pass subtracts and measures: w = source - Q^T c, then Q w of the result and ||w||. Gram-Schmidt
// with a verified second pass is two of them, as on the CPU (lanczos/basis.h):
//   project: w = p - (local terms), h = Q w
//   remove:  w <- w - Q^T h, s = Q w: what is left, measured on the vector itself
//
// Floor of a pass over Q (m, n) of `size`-byte numbers: m n size bytes of Q read once, n size of the
// source read and of w written; 2 m n operations of Q w in T and 2 (m - first) n in double of the
// rows that are subtracted. A tile of columns waits in shared memory between the two uses, up to
// kStagedBytes of it; rows beyond that are read again, from the L2 cache while all running blocks'
// tiles fit into it.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace pylandscape::cuda {

template <typename T>
struct BasisArgs {
  int64_t rows, n, stride;      // Q (rows, n), row r at basis + r stride
  const T* basis;
  const T* source;              // (n,), or null: source_double
  const double* source_double;  // (n,)
  int64_t first;                // rows first .. rows - 1 are subtracted
  const double* c;              // (rows - first,)
  T* w;                         // (n,), may be the source; null: nothing is written
  double* parts;                // (rows + 1, basis_groups): sums of each block
  int64_t staged;               // rows staged .. rows - 1 wait in shared memory; set by the launcher
};

constexpr int64_t kMostBasisRows = 8192;

// How many partial sums a row has: of (rows, n) and T alone, so that bits are the same on every GPU.
int64_t basis_groups(int64_t rows, int64_t n, size_t size);

// out (rows + 1,) = Q w and ||w||. Sums over columns are double, of runs of at most 8 products in T;
// subtractions are double, rounded once.
template <typename T>
cudaError_t basis_pass(BasisArgs<T> args, double* out, cudaStream_t stream);

}  // namespace pylandscape::cuda
