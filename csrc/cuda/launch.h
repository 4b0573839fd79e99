// How kernels are launched and find their dynamic shared memory. Everything else that a .cu file
// uses is also valid C++ under tests/emulation, which runs the same files without a GPU: so no
// <<<...>>> and no `extern __shared__` anywhere but here.
#pragma once
#include <cuda_runtime.h>

#if defined(__CUDACC__)

namespace pylandscape::cuda {

// kernel<<<grid, block, shared, stream>>>(arguments...)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<grid, block, shared, stream>>>(arguments...);
}

// Lets the kernel have as much dynamic shared memory as the current device can give. That is state
// of the kernel: always the same, whoever asks at the same time.
template <typename F>
cudaError_t allow_shared(F* kernel) {
  int device = 0, bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return dynamic_shared_bytes;
}

}  // namespace pylandscape::cuda

#endif
