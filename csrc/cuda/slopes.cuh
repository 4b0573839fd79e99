// First and second derivatives, in double: of one element's activation, and of one sample's loss
// terms. The CPU's formulas (cpu/elementwise.inl, cpu/losses.inl).
#pragma once
#include "cuda/elementary.cuh"
#include "cuda/losses.cuh"

namespace pylandscape::cuda {

struct Slopes {
  double first, second;
};

// f(function from one element to its Slopes): the choice is made once, outside of f's loop.
template <typename F>
__device__ void with_slopes(cpu::Unary function, double a, double b, F f) {
  using cpu::Unary;
  switch (function) {
    case Unary::kAffine: return f([=](double) { return Slopes{a, 0}; });
    case Unary::kRelu: return f([](double v) { return Slopes{v > 0 ? 1.0 : 0.0, 0}; });
    case Unary::kLeakyRelu: return f([=](double v) { return Slopes{v > 0 ? 1.0 : a, 0}; });
    case Unary::kClamp: return f([=](double v) { return Slopes{v > a && v < b ? 1.0 : 0.0, 0}; });
    case Unary::kAbs:
      return f([](double v) { return Slopes{v > 0 ? 1.0 : v < 0 ? -1.0 : 0.0, 0}; });
    case Unary::kSquare: return f([](double v) { return Slopes{v + v, 2}; });
    case Unary::kExp:
      return f([](double v) {
        const double y = exp(v);
        return Slopes{y, y};
      });
    case Unary::kTanh:
      return f([](double v) {
        const double y = tanh(v), slope = 1 - y * y;
        return Slopes{slope, -2 * y * slope};
      });
    case Unary::kSigmoid:
      return f([](double v) {
        const double y = sigmoid(v), slope = y * (1 - y);
        return Slopes{slope, slope * (1 - 2 * y)};
      });
    case Unary::kSoftplus:
      return f([=](double v) {
        const double y = sigmoid(v * a);
        return v * a > b ? Slopes{1, 0} : Slopes{y, a * y * (1 - y)};
      });
    case Unary::kElu:
      return f([=](double v) {
        const double slope = b * a * exp(v > 0 ? 0.0 : v);
        return v > 0 ? Slopes{b, 0} : Slopes{slope, slope};
      });
    case Unary::kSilu:
      return f([](double v) {
        const double y = sigmoid(v), slope = y * (1 - y);
        return Slopes{y + v * slope, slope * (2 + v * (1 - 2 * y))};
      });
    case Unary::kGelu:
      return f([](double v) {
        const double density = 0.3989422804014327 * exp(-0.5 * v * v);
        return Slopes{0.5 * erfc(v * -0.70710678118654752) + v * density, density * (2 - v * v)};
      });
    case Unary::kGeluTanh:  // v s(u), s the sigmoid, u = 2 sqrt(2/pi) (v + c v^3)
      return f([](double v) {
        constexpr double kScale = 1.5957691216057308, kCubic = 0.044715;
        const double u = kScale * (v + kCubic * v * v * v);
        const double du = kScale * (1 + 3 * kCubic * v * v), d2u = 6 * kScale * kCubic * v;
        const double s = sigmoid(u), slope = s * (1 - s);
        return Slopes{s + v * slope * du, slope * (2 * du + v * (d2u + (1 - 2 * s) * du * du))};
      });
  }
}

__device__ inline bool elementwise(const cpu::LossArgs& a) {
  return a.kind == cpu::Loss::kMse || a.kind == cpu::Loss::kBceWithLogits;
}

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

// Of sample s with outputs x(f): gradient(f, d loss / d x_f), and keep(i, what loss_product needs):
// of cross-entropy the probabilities, then each target's sum of coefficients; of bce the curvatures.
template <typename X, typename G, typename K>
__device__ void loss_slopes(const cpu::LossArgs& a, const DeviceTargets& targets, int64_t s, X x,
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

// product(f, the second derivative along r(f)), from what loss_slopes kept.
template <typename R, typename K, typename P>
__device__ void loss_product(const cpu::LossArgs& a, R r, K kept, P product) {
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
