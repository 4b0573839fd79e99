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

#include "common/limits.h"

namespace pylandscape::cuda {

// Several starts at once, each with its own Q, source, c and w; from one to the next they are a step
// apart. A start's bits do not depend on the others.

template <typename T>
struct BasisArgs {
  int64_t starts;               // 1 .. kMostStarts
  int64_t basis_step, source_step, c_step, w_step;
  int64_t rows, n, stride;      // Q (rows, n), row r at basis + r stride
  const T* basis;
  const T* source;              // (n,), or null: source_double
  const double* source_double;  // (n,)
  int64_t first;                // rows first .. rows - 1 are subtracted
  const double* c;              // (rows - first,)
  T* w;                         // (n,), may be the source; null: nothing is written
  double* parts;                // (starts, rows + 1, basis_groups): sums of each block
  int64_t staged;               // rows staged .. rows - 1 wait in shared memory; set by the launcher
};

// How many partial sums a row has: of (rows, n) and T alone, so that bits are the same on every GPU.
int64_t basis_groups(int64_t rows, int64_t n, size_t size);

// out (starts, rows + 1) = Q w and ||w||. Sums over columns are double, of runs of at most 8 products in T;
// subtractions are double, rounded once.
template <typename T>
cudaError_t basis_pass(BasisArgs<T> args, double* out, cudaStream_t stream);

// The little that is left of a Lanczos step. Floors: row_dots reads both vectors once, scale_rows
// reads and writes one.
int64_t dot_groups(int64_t n);

template <typename T, typename S>
struct DotArgs {
  int64_t starts, n;     // 1 .. kMostStarts
  const T* x;            // (n,), of start i at x + i x_step
  const S* y;
  int64_t x_step, y_step;
  double* parts;         // (starts, dot_groups)
};
// out (starts,) = x . y, products and sums in double.
template <typename T, typename S>
cudaError_t row_dots(const DotArgs<T, S>& args, double* out, cudaStream_t stream);

template <typename T>
struct ScaleArgs {
  int64_t starts, n;           // 1 .. kMostStarts
  T* x;                        // (n,), of start i at x + i step
  int64_t step;
  double factor[kMostStarts];  // in double, the product rounded once
};
template <typename T>
cudaError_t scale_rows(const ScaleArgs<T>& args, cudaStream_t stream);

}  // namespace pylandscape::cuda
