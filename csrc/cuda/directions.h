// Launchers of directions on the GPU. Pointers are device memory unless they say otherwise; work is
// put on `stream` and not waited for.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "directions/segments.h"

namespace pylandscape::cuda {

// Elements begin .. end - 1. `owner` is the large segment (by number) of a chunk; in `owners`,
// begin and end are chunk numbers.
struct Range {
  int64_t begin, end, owner;
};

// The kinds of ranges of one direction, in this order, one after the other in one list.
struct Plan {
  enum Kind : int {
    kWarp,   // segments that a warp holds in registers
    kBlock,  // segments that a block holds in registers
    kChunk,  // parts of larger segments: two sweeps, or one where no norm is asked for
    kOwner,  // which chunks belong to one norm
    kZero,   // elements that belong to no segment
    kKinds,
  };
  std::vector<Range> ranges;
  int64_t first[kKinds + 1];  // ranges of a kind: first[kind] .. first[kind + 1] - 1

  // Host memory: segments (count, 2), as check_segments wants them, of a vector of n.
  Plan(int64_t n, const int64_t* segments, int64_t count, Mode mode);
  int64_t count(Kind kind) const { return first[kind + 1] - first[kind]; }
};

template <typename T>
struct DirectionArgs {
  T* out;              // (n,)
  const T* direction;  // (n,), or null: the standard normals of (seed, stream)
  const T* theta;      // (n,)
  Mode mode;
  uint64_t seed, stream;
};

// As on the CPU (directions/directions.h). ranges: plan.ranges in device memory; work: device memory
// for 2 plan.count(kChunk) + plan.count(kOwner) doubles. Sums have a fixed shape, so that the result
// is the same on every run and every GPU.
template <typename T>
cudaError_t make_direction(const DirectionArgs<T>& args, const Plan& plan, const Range* ranges,
                           double* work, cudaStream_t stream);

// out (n,) = standard normal numbers first .. first + n - 1 of (seed, stream).
cudaError_t gaussian(uint64_t seed, uint64_t stream_number, int64_t first, int64_t n, float* out,
                     cudaStream_t stream);

// out (g, n) = theta (n,) + c (g, k) d (k, n), summed in the order of k; c rounded to T.
template <typename T>
cudaError_t perturb(int64_t g, int64_t k, int64_t n, const T* theta, const double* c, const T* d,
                    T* out, cudaStream_t stream);

}  // namespace pylandscape::cuda
