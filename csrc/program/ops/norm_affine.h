// Batch norm by given statistics as y = x * scale + shift.
#pragma once
#include <cmath>
#include <vector>

#include "question/call.h"

namespace pylandscape {

// Scale, then shift of every channel: of the batch norm, and of the convolution's bias before it.
template <typename T>
std::vector<T> norm_affine(const Call<T>& c) {
  const Parameters<T>& at = c.at;
  const int64_t channels = c.program.uses()[c.op.norm.mean].size();
  std::vector<T> affine(2 * channels);
  for (int64_t i = 0; i < channels; ++i) {
    const double scale =
        (at.gain != nullptr ? double(at.gain[i]) : 1.0) / std::sqrt(at.variance[i] + c.op.norm.eps);
    const double from = double(at.bias != nullptr ? at.bias[i] : T(0)) - at.mean[i];
    affine[i] = static_cast<T>(scale);
    affine[channels + i] =
        static_cast<T>(from * scale + (at.shift != nullptr ? at.shift[i] : T(0)));
  }
  return affine;
}

}  // namespace pylandscape
