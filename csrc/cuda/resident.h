// Launchers of questions about the loss. Pointers are device memory; work is put on `stream` and
// not waited for.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/resident.h"
#include "cpu/kernels.h"

namespace pylandscape::cuda {

template <typename T>
struct ResidentArgs {
  const T* external;         // (external_rows, samples)
  const int32_t* list;       // (index_size,)
  const int32_t* index;      // targets (target_rows, samples), or null
  const double* dense;       // targets (target_rows, samples), or null
  const T* base;             // (weights,) packed theta; of free points, the packed constants
  const T* directions;       // (directions, weights) packed
  const T* coordinates;      // (g, directions); of free points the thetas (g, n)
  double* parts;             // (g, program.parts(), 2): losses and hits of 32 samples each
  T* outputs;                // (g, samples, features), or null
  int64_t g;
  bool hits;                 // whether they are asked for
};

// The losses of g points of a program whose network fits a block. `blocks`: how many the device
// runs at once; it decides how many points a block takes in turn, not the result.
template <typename T>
cudaError_t resident_losses(const resident::Program& program, const ResidentArgs<T>& args,
                            int64_t blocks, cudaStream_t stream);

// result (2, g): sums of parts (g, count, 2), losses, then hits.
cudaError_t sum_parts(int64_t g, int64_t count, const double* parts, double* result,
                      cudaStream_t stream);

// Where a network does not fit, torch multiplies the matrices of many points and these do the rest.

// out (g, rows, m) = f(terms[0] + sum_j c[j] terms[1 + j] + bias): terms (1 + k, rows, m), c (g, k),
// bias (g, m) or null.
template <typename T>
struct CombineArgs {
  int64_t g, k, rows, m;
  const T *terms, *c, *bias;
  cpu::Unary function;
  double a, b;
  T* out;
};
template <typename T>
cudaError_t combine_terms(const CombineArgs<T>& args, cudaStream_t stream);

// parts (g, ceil(count / 32), 2) of outputs (g, count, features) of the samples first ..
// first + count - 1; targets as in ResidentArgs, with `samples` columns. Of `total` parts a point,
// these begin at number first / 32.
template <typename T>
struct OutputLossArgs {
  int64_t g, first, count, samples, features, total;
  cpu::LossArgs loss;
  const int32_t* index;
  const double* dense;
  const T* outputs;
  double* parts;
  bool hits;
};
template <typename T>
cudaError_t output_losses(const OutputLossArgs<T>& args, cudaStream_t stream);

}  // namespace pylandscape::cuda
