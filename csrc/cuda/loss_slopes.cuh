// Derivatives of one sample's loss terms, in double: the CPU's formulas (cpu/losses.inl).
#pragma once
#include "cuda/elementary.cuh"
#include "cuda/losses.cuh"

namespace pylandscape::cuda {

// Cross-entropy and nll are sum_c a_c (-l_c) with constant coefficients a (cpu/losses.inl).
__device__ inline double coefficient(const cpu::LossArgs& a, const DeviceTargets& targets, int64_t s,
                                     int64_t j, int64_t first, int64_t c) {
  const double smooth = a.label_smoothing, floor = smooth / double(a.classes);
  const double w = a.weight != nullptr ? a.weight[c] : 1.0;
  if (targets.index == nullptr) {
    const double t = targets.dense[(first + c * a.inner) * targets.samples + s];
    return w * (t * (1.0 - smooth) + floor);
  }
  const int32_t y = targets.index[j * targets.samples + s];
  return y < 0 ? 0.0 : w * ((y == c ? 1.0 - smooth : 0.0) + floor);
}

// Of sample s with outputs x(f): gradient(f, d loss / d x_f), and keep(i, what column_product needs):
// of cross-entropy the probabilities, then each target's sum of coefficients; of elementwise losses
// but mse the curvatures.
template <typename X, typename G, typename K>
__device__ void column_slopes(const cpu::LossArgs& a, const DeviceTargets& targets, int64_t s, X x,
                            G gradient, K keep) {
  const int64_t features = a.outer * a.classes * a.inner;
  if (elementwise(a)) {
    for (int64_t f = 0; f < features; ++f) {
      const double w = a.weight != nullptr ? a.weight[f] : 1.0;
      const double v = x(f), t = targets.dense[f * targets.samples + s];
      if (a.kind == cpu::Loss::kMse) {
        gradient(f, w * (2.0 * (v - t)));
        continue;
      }
      if (a.kind != cpu::Loss::kBceWithLogits) {
        gradient(f, w * term_slope(a, v, t));
        keep(f, w * term_curvature(a, v, t));
        continue;
      }
      const double pos = a.pos_weight != nullptr ? a.pos_weight[f] : 1.0;
      const double q = 1.0 + (pos - 1.0) * t, off = sigmoid(-v);
      gradient(f, w * ((1.0 - t) - q * off));
      keep(f, w * q * (sigmoid(v) * off));
    }
    return;
  }
  for (int64_t j = 0; j < a.outer * a.inner; ++j) {
    const int64_t first = j / a.inner * a.classes * a.inner + j % a.inner;
    const bool soft = a.kind == cpu::Loss::kCrossEntropy;
    const double shift =
        soft ? log_sum_exp(a.classes, [&](int64_t c) { return x(first + c * a.inner); }) : 0.0;
    double sum = 0;
    for (int64_t c = 0; c < a.classes; ++c) sum += coefficient(a, targets, s, j, first, c);
    for (int64_t c = 0; c < a.classes; ++c) {
      const int64_t f = first + c * a.inner;
      double d = -coefficient(a, targets, s, j, first, c);
      if (soft) {
        const double p = exp(x(f) - shift);
        d += sum * p;
        keep(f, p);
      }
      gradient(f, sum == 0.0 ? 0.0 : d);
    }
    if (soft) keep(features + j, sum);
  }
}

// product(f, the second derivative along r(f)), from what column_slopes kept.
template <typename R, typename K, typename P>
__device__ void column_product(const cpu::LossArgs& a, R r, K kept, P product) {
  const int64_t features = a.outer * a.classes * a.inner;
  if (elementwise(a)) {
    for (int64_t f = 0; f < features; ++f)
      product(f, a.kind == cpu::Loss::kMse
                     ? 2.0 * (a.weight != nullptr ? a.weight[f] : 1.0) * r(f)
                     : kept(f) * r(f));
    return;
  }
  if (a.kind == cpu::Loss::kNll) {
    for (int64_t f = 0; f < features; ++f) product(f, 0.0);
    return;
  }
  for (int64_t j = 0; j < a.outer * a.inner; ++j) {
    const int64_t first = j / a.inner * a.classes * a.inner + j % a.inner;
    const double sum = kept(features + j);
    double mean = 0;
    for (int64_t c = 0; c < a.classes; ++c) {
      const int64_t f = first + c * a.inner;
      mean += kept(f) * r(f);
    }
    for (int64_t c = 0; c < a.classes; ++c) {
      const int64_t f = first + c * a.inner;
      product(f, sum == 0.0 ? 0.0 : sum * kept(f) * (r(f) - mean));
    }
  }
}

}  // namespace pylandscape::cuda
