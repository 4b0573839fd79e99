// What CPU and CUDA directions share: modes, segments, the factor of a segment.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/host_device.h"

namespace pylandscape {

// What a segment of a direction is scaled to.
enum class Target : int {
  kTheta,        // the norm of the same segment of theta
  kUnit,         // 1
  kElementwise,  // no norm: each element times theta's
  kNone,         // left as it is
};

struct Mode {
  Target target;
  bool joint;  // one norm over all segments
  bool has_norm() const { return target == Target::kTheta || target == Target::kUnit; }
};

// "filter" and "layer" (and "dfilter" and "dlayer") differ in the segments alone.
inline Mode parse_mode(const std::string& name) {
  if (name == "filter" || name == "layer") return {Target::kTheta, false};
  if (name == "dfilter" || name == "dlayer") return {Target::kUnit, false};
  if (name == "model") return {Target::kTheta, true};
  if (name == "weight") return {Target::kElementwise, false};
  if (name == "none") return {Target::kNone, false};
  throw std::invalid_argument(
      "mode: expected filter, layer, model, weight, dfilter, dlayer or none, got " + name);
}

// segments (count, 2): [begin, end), increasing, not overlapping, within [0, n).
inline void check_segments(int64_t n, const int64_t* segments, int64_t count) {
  int64_t last = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = segments[2 * s], end = segments[2 * s + 1];
    if (begin < last || end < begin || end > n)
      throw std::invalid_argument("segments: expected increasing ranges within 0 .. " +
                                  std::to_string(n) + ", got [" + std::to_string(begin) + ", " +
                                  std::to_string(end) + ") at " + std::to_string(s));
    last = end;
  }
}

// |theta| / (|d| + 1e-10) (Li et al. 2018, section 4), with 1 for |theta| under kUnit. A zero d
// gives zero.
PL_HOST_DEVICE inline double factor(Target target, double d2, double theta2) {
  constexpr double kTiny = 1e-10;
  if (d2 == 0.0) return 0.0;
  return (target == Target::kUnit ? 1.0 : sqrt(theta2)) / (sqrt(d2) + kTiny);
}

}  // namespace pylandscape
