// Directions: Gaussian draws and filter normalisation, segment by segment.
#pragma once
#include "program/program.h"

namespace pylandscape {

// What a segment of a direction is scaled to.
enum class Target : int {
  kTheta = 0,        // the norm of the same segment of theta
  kUnit = 1,         // 1
  kElementwise = 2,  // no norm: each element times theta's
  kNone = 3,         // left as it is
};

// out (n,) = direction, each segment [begin, end) scaled to its target, zero outside the segments.
// segments (count, 2), increasing, not overlapping, within [0, n). direction null: the standard
// normals number 0 .. n-1 of (seed, stream), drawn where they are scaled. joint: one norm over all
// segments. A zero norm on either side gives zero. theta and direction are read once, out is
// written once, except for segments that do not fit the cache.
template <typename T>
struct DirectionArgs {
  int64_t n;
  T* out;
  const T* direction;
  const T* theta;
  const int64_t* segments;
  int64_t count;
  Target target;
  bool joint;
  uint64_t seed, stream;
};

// Throws std::invalid_argument for segments that are not as described.
template <typename T>
void make_direction(const DirectionArgs<T>& args, const Parallel& parallel);

}  // namespace pylandscape
