// Directions on the CPU: Gaussian draws and normalisation, segment by segment.
#pragma once
#include "directions/segments.h"
#include "program/parallel.h"

namespace pylandscape {

constexpr int64_t kDirectionChunk = 1 << 14;  // elements: direction and theta of a chunk fit L2

// out (n,) = direction, each segment scaled as the mode says, zero outside the segments.
// direction null: the standard normals number 0 .. n-1 of (seed, stream), drawn where they are
// scaled. direction and theta are read once, out is written once, except for segments that do not
// fit the cache. The result does not depend on the number of threads.
template <typename T>
struct DirectionArgs {
  int64_t n;
  T* out;
  const T* direction;
  const T* theta;
  const int64_t* segments;  // (count, 2), as check_segments wants them
  int64_t count;
  Mode mode;
  uint64_t seed, stream;
};

// Throws std::invalid_argument for segments that are not as described.
template <typename T>
void make_direction(const DirectionArgs<T>& args, const Parallel& parallel);

}  // namespace pylandscape
