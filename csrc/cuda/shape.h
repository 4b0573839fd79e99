// How direction kernels are shaped; host planning and device code agree on it.
#pragma once
#include <cstdint>

#include "common/gaussian.h"

namespace pylandscape::cuda {

constexpr int kWarpThreads = 32, kBlockThreads = 256;
constexpr int kPerThread = 4;    // numbers of one Philox block
constexpr int kHeldRounds = 8;   // blocks of numbers that a thread holds in registers
constexpr int64_t kChunkElements = 8192;

// The longest segment that a team of threads holds, wherever in a group of draws it begins.
constexpr int64_t held_elements(int threads) {
  return int64_t{threads} * kPerThread * kHeldRounds - (gaussian::kGroup - 1);
}

}  // namespace pylandscape::cuda
