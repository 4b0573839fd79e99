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

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return dynamic_shared_bytes;
}

}  // namespace pylandscape::cuda

#endif
