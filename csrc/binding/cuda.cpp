// Registers the CUDA ops.
#include <torch/csrc/stable/library.h>

#include "binding/cuda_ops.h"
#include "binding/derivative_ops.h"
#include "binding/layer_ops.h"
#include "binding/point_ops.h"
#include "binding/program_ops.h"
#include "binding/spectral_ops.h"

namespace pylandscape {
namespace {

// Whether torch can use CUDA, what the driver says (a cudaError_t) and how many GPUs there are.
std::tuple<bool, int64_t, int64_t> cuda_status() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return {torch_get_stream() != nullptr, static_cast<int64_t>(error), int64_t{count}};
}

// Bytes of shared memory that a block may have there.
int64_t cuda_shared_limit(int64_t device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                               static_cast<int>(device)));
  return bytes;
}

}  // namespace
}  // namespace pylandscape

STABLE_TORCH_LIBRARY_FRAGMENT(pylandscape, m) {
  m.def("cuda_status() -> (bool, int, int)");
  m.def("cuda_shared_limit(int device) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) {
  pylandscape::implement<pylandscape::Cuda>(m);
  pylandscape::implement_programs(m);
  pylandscape::implement_derivatives(m);
  pylandscape::implement_layers(m);
  pylandscape::implement_spectral(m);
  pylandscape::implement_points(m);
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CompositeExplicitAutograd, m) {
  m.impl("cuda_status", TORCH_BOX(&pylandscape::cuda_status));
  m.impl("cuda_shared_limit", TORCH_BOX(&pylandscape::cuda_shared_limit));
}
