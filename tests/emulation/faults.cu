// Kernels with the mistakes that the emulation is there to find, and the same without.
#include "cuda/launch.h"

namespace {

// out (n,) = x reversed within the block, through shared memory.
template <bool kBarrier>
__global__ void reverse(int n, const float* x, float* out) {
  float* kept = reinterpret_cast<float*>(pylandscape::cuda::dynamic_shared());
  const int i = static_cast<int>(threadIdx.x);
  kept[i] = x[i];
  if (kBarrier) __syncthreads();
  out[i] = kept[n - 1 - i];
}

__global__ void half_a_barrier(float*) {
  if (threadIdx.x < 7) __syncthreads();
}

__global__ void two_barriers(float*) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void missing_lane(float* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void lane_outside(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

// out (6, 32): what every warp operation gives to each lane.
__global__ void warp_operations(float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const float own = static_cast<float>(lane);
  out[lane] = __shfl_sync(0xffffffffu, own, 5);
  out[32 + lane] = __shfl_xor_sync(0xffffffffu, own, 6);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, own, 3);
  out[96 + lane] = __shfl_up_sync(0xffffffffu, own, 3);
  out[128 + lane] = __shfl_sync(0xffffffffu, own, 1, 8);
  out[160 + lane] = static_cast<float>(__popc(__ballot_sync(0xffffffffu, lane > 20)));
}

__global__ void count(int* total) { atomicAdd(total, 1); }

}  // namespace

// What went wrong, or "".
extern "C" __attribute__((visibility("default"))) const char* emulation_fault(int which, int n,
                                                                             const float* x,
                                                                             float* out) {
  using pylandscape::cuda::launch;
  const auto threads = static_cast<unsigned>(n);
  const size_t bytes = sizeof(float) * threads;
  if (which == 0) launch(&reverse<true>, 1, threads, bytes, nullptr, n, x, out);
  if (which == 1) launch(&reverse<false>, 1, threads, bytes, nullptr, n, x, out);
  if (which == 2) launch(&half_a_barrier, 1, threads, 0, nullptr, out);
  if (which == 3) launch(&two_barriers, 1, threads, 0, nullptr, out);
  if (which == 4) launch(&missing_lane, 1, threads, 0, nullptr, out);
  if (which == 5) launch(&lane_outside, 1, threads, 0, nullptr, out);
  if (which == 6) launch(&warp_operations, 1, 32, 0, nullptr, out);
  if (which == 7) launch(&reverse<true>, 1, threads, 60 << 10, nullptr, n, x, out);
  if (which == 8) launch(&reverse<true>, 1, 2048, bytes, nullptr, n, x, out);
  if (which == 9) launch(&count, dim3(3, 5, 2), dim3(4, 8, 2), 0, nullptr, reinterpret_cast<int*>(out));
  return cudaGetLastError() == cudaSuccess ? "" : cudaGetErrorString(cudaErrorLaunchFailure);
}
