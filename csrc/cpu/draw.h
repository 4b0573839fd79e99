// The Gaussian draw, in all instruction sets the same bits (compiled without contraction).
#pragma once
#include <cstdint>

namespace pylandscape::cpu {

struct DrawKernels {
  // out[i] (count,) = standard normal number `first + i` of stream (seed, stream).
  void (*gaussian)(uint64_t seed, uint64_t stream, int64_t first, int64_t count, float* out);
};

const DrawKernels& draw_kernels();

namespace baseline { extern const DrawKernels draw; }
namespace avx2 { extern const DrawKernels draw; }
namespace avx512 { extern const DrawKernels draw; }

}  // namespace pylandscape::cpu
