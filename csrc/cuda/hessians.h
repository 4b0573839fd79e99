// Loss, gradient and Hessian of a small network at many points (common/hessian.h). Pointers are
// device memory; work is put on `stream` and not waited for.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/hessian.h"

namespace pylandscape::cuda {

struct HessianArgs {
  const int32_t* list;      // (list_size,)
  const double* constants;  // (source - n,)
  const double* x;          // (features, samples)
  const int32_t* index;     // targets (target_rows, samples), or null
  const double* dense;      // targets (target_rows, samples), or null
  const double* points;     // (g, n)
  double denominator;       // of the summed loss terms
  double* losses;           // (g,)
  double* gradients;        // (g, n)
  double* hessians;         // (g, n, n), of a plan with tangents
  int64_t g;
};

// Losses, gradients and Hessians, which are symmetric; derivatives are NaN where the loss or the
// point is not finite. A point's numbers depend on nothing but the point: sums run over groups of 32
// samples, and then over groups, in order.
cudaError_t point_hessians(const hessian::Program& program, const HessianArgs& args,
                           cudaStream_t stream);

}  // namespace pylandscape::cuda
