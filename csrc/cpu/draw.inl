// Compiled once per instruction set, without contraction; see common/gaussian.h.
#include "cpu/draw.h"

#include "common/gaussian.h"

namespace pylandscape::cpu {
namespace {

// One group of 64: sixteen independent blocks, which the compiler turns into vectors.
inline void group(uint64_t seed, uint64_t stream, uint64_t index, float* __restrict__ out) {
  using namespace gaussian;
#pragma GCC ivdep
  for (int j = 0; j < kBlocks; ++j)
    normals(seed, stream, index * kBlocks + j, out + j, out + kBlocks + j, out + 2 * kBlocks + j,
            out + 3 * kBlocks + j);
}

void gaussian_range(uint64_t seed, uint64_t stream, int64_t first, int64_t count, float* out) {
  constexpr int kGroup = gaussian::kGroup;
  int64_t i = first;
  const int64_t end = first + count;
  while (i < end) {
    const int64_t index = i / kGroup, skip = i % kGroup;
    if (skip == 0 && i + kGroup <= end) {
      group(seed, stream, index, out + (i - first));
      i += kGroup;
    } else {
      float some[kGroup];
      group(seed, stream, index, some);
      for (int64_t j = skip; j < kGroup && i < end; ++j, ++i) out[i - first] = some[j];
    }
  }
}

}  // namespace

namespace PL_ISA_NS {
const DrawKernels draw{&gaussian_range};
}

}  // namespace pylandscape::cpu
