// The loss terms of one column, in double from its outputs, and their sums: the CPU's definitions
// (cpu/losses.inl).
//
// Sums have a fixed shape, whatever the block: 32 neighbouring samples by a warp's tree, these parts
// by a warp that takes them in turn, and a tree again.
#pragma once
#include "cpu/kernels.h"
#include "cuda/elementary.cuh"
#include "cuda/launch.h"

namespace pylandscape::cuda {

struct Terms {
  double loss = 0, hits = 0;
};

// Targets (rows, samples): the class of each, or -1; or dense.
struct DeviceTargets {
  const int32_t* index;
  const double* dense;
  int64_t samples;
};

// log sum exp over the classes; x(c) is output c.
template <typename X>
__device__ double log_sum_exp(int64_t classes, X x) {
  auto top = x(0);
  for (int64_t c = 1; c < classes; ++c) {
    const auto v = x(c);
    top = v > top ? v : top;
  }
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) sum += exp_difference(x(c), top);
  return double(top) + log(sum);
}

// The first of the largest.
template <typename X>
__device__ int64_t argmax(int64_t classes, X x) {
  auto top = x(0);
  int64_t best = 0;
  for (int64_t c = 1; c < classes; ++c) {
    const auto v = x(c);
    if (v > top) top = v, best = c;
  }
  return best;
}

// Cross-entropy and nll, class indices: (1 - s) w_y (-l_y) + s/C sum_c w_c (-l_c), with
// log-probabilities l_c = x_c - shift (shift = 0 for nll).
template <typename X>
__device__ Terms class_terms(const cpu::LossArgs& a, int32_t y, bool hits, X x) {
  Terms found;
  if (hits) found.hits = argmax(a.classes, x) == y;
  if (y < 0) return found;  // counts nothing, whatever its outputs
  const double shift = a.kind == cpu::Loss::kCrossEntropy ? log_sum_exp(a.classes, x) : 0.0;
  const auto weight = [&](int64_t c) { return a.weight != nullptr ? a.weight[c] : 1.0; };
  found.loss = weight(y) * (shift - double(x(y)));
  const double smooth = a.label_smoothing;
  if (smooth == 0.0) return found;
  double all = 0;
  for (int64_t c = 0; c < a.classes; ++c) all += weight(c) * (shift - double(x(c)));
  found.loss = (1.0 - smooth) * found.loss + smooth / double(a.classes) * all;
  return found;
}

// Cross-entropy, class probabilities t: sum_c w_c t'_c (-l_c), t' = (1 - s) t + s/C.
template <typename X, typename Wanted>
__device__ Terms soft_terms(const cpu::LossArgs& a, bool hits, X x, Wanted wanted) {
  Terms found;
  const double smooth = a.label_smoothing, floor = smooth / double(a.classes);
  const double shift = log_sum_exp(a.classes, x);
  for (int64_t c = 0; c < a.classes; ++c) {
    const double w = a.weight != nullptr ? a.weight[c] : 1.0;
    found.loss += w * (wanted(c) * (1.0 - smooth) + floor) * (shift - double(x(c)));
  }
  if (hits) found.hits = argmax(a.classes, x) == argmax(a.classes, wanted);
  return found;
}

// Whether there is one term for each output.
__device__ inline bool elementwise(const cpu::LossArgs& a) { return a.kind >= cpu::Loss::kMse; }

__device__ inline double stirling(double t) {
  return t > 1.0 ? t * log(t) - t + 0.5 * log(6.283185307179586 * t) : 0.0;
}

// Of an output v and a target t: the term, its first and its second derivative in v. Of mse and bce
// with logits see below (cpu/losses.inl).
__device__ inline double term(const cpu::LossArgs& a, double v, double t) {
  const double d = v - t, size = fabs(d);
  switch (a.kind) {
    case cpu::Loss::kHuber: return size < a.a ? 0.5 * d * d : a.a * (size - 0.5 * a.a);
    case cpu::Loss::kSmoothL1: return size < a.a ? 0.5 * d * d / a.a : size - 0.5 * a.a;
    case cpu::Loss::kBce: {
      const double on = log(v), off = log(1.0 - v);
      return -t * (on < -100.0 ? -100.0 : on) - (1.0 - t) * (off < -100.0 ? -100.0 : off);
    }
    case cpu::Loss::kKlDiv: return (t == 0.0 ? 0.0 : t * log(t)) - t * v;
    case cpu::Loss::kPoissonLog: return exp(v) - t * v + (a.b != 0.0 ? stirling(t) : 0.0);
    case cpu::Loss::kPoisson:
      return v - t * log(v + a.a) + (a.b != 0.0 ? stirling(t) : 0.0);
    default: return 0.0;
  }
}

__device__ inline double term_slope(const cpu::LossArgs& a, double v, double t) {
  const double d = v - t, size = fabs(d), sign = d > 0.0 ? 1.0 : d < 0.0 ? -1.0 : d;
  switch (a.kind) {
    case cpu::Loss::kHuber: return size < a.a ? d : a.a * sign;
    case cpu::Loss::kSmoothL1: return size < a.a ? d / a.a : sign;
    case cpu::Loss::kBce: {
      const double spread = v * (1.0 - v);
      return d / (spread < 1e-12 ? 1e-12 : spread);
    }
    case cpu::Loss::kKlDiv: return -t;
    case cpu::Loss::kPoissonLog: return exp(v) - t;
    case cpu::Loss::kPoisson: return 1.0 - t / (v + a.a);
    default: return 0.0;
  }
}

__device__ inline double term_curvature(const cpu::LossArgs& a, double v, double t) {
  const double size = fabs(v - t);
  switch (a.kind) {
    case cpu::Loss::kHuber: return size < a.a ? 1.0 : 0.0;
    case cpu::Loss::kSmoothL1: return size < a.a ? 1.0 / a.a : 0.0;
    case cpu::Loss::kBce: {
      const double spread = (v + 1e-12) * (1.0 - v + 1e-12);
      return ((v - t) * (v - t) + t * (1.0 - t)) / (spread * spread);
    }
    case cpu::Loss::kPoissonLog: return exp(v);
    case cpu::Loss::kPoisson: return t / ((v + a.a) * (v + a.a));
    default: return 0.0;
  }
}

// All terms of sample s; x(f) is output f of its (outer, classes, inner).
template <typename X>
__device__ Terms column_terms(const cpu::LossArgs& a, const DeviceTargets& targets, int64_t s,
                              bool hits, X x) {
  Terms sum;
  const int64_t samples = targets.samples;
  if (elementwise(a)) {
    const int64_t features = a.outer * a.classes * a.inner;
    for (int64_t f = 0; f < features; ++f) {
      const double v = x(f), t = targets.dense[f * samples + s];
      double value;
      if (a.kind == cpu::Loss::kMse) {
        value = (v - t) * (v - t);
      } else if (a.kind != cpu::Loss::kBceWithLogits) {
        value = term(a, v, t);
        if (hits && a.kind == cpu::Loss::kBce) sum.hits += (v > 0.5) == (t > 0.5);
      } else {  // (1 - t) v + p log(1 + exp(-v)), p = 1 + (pos_weight - 1) t
        const double pos = a.pos_weight != nullptr ? a.pos_weight[f] : 1.0;
        value = (1.0 - t) * v + (1.0 + (pos - 1.0) * t) * softplus(-v);
        if (hits) sum.hits += (v > 0) == (t > 0.5);
      }
      sum.loss += a.weight != nullptr ? a.weight[f] * value : value;
    }
    return sum;
  }
  for (int64_t j = 0; j < a.outer * a.inner; ++j) {
    const int64_t first = j / a.inner * a.classes * a.inner + j % a.inner;
    const auto output = [&](int64_t c) { return x(first + c * a.inner); };
    const Terms own =
        targets.index != nullptr
            ? class_terms(a, targets.index[j * samples + s], hits, output)
            : soft_terms(a, hits, output, [&](int64_t c) {
                return targets.dense[(first + c * a.inner) * samples + s];
              });
    sum.loss += own.loss, sum.hits += own.hits;
  }
  return sum;
}

// The sum over a warp, in every lane.
__device__ inline Terms warp_sum(Terms x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x.loss += __shfl_xor_sync(0xffffffffu, x.loss, offset);
    x.hits += __shfl_xor_sync(0xffffffffu, x.hits, offset);
  }
  return x;
}

}  // namespace pylandscape::cuda
