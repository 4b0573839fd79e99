// Elementary functions of one element, in float or double. The CPU's formulas (cpu/elementwise.inl)
// over CUDA's exp, log1p, erfc and tanh; no fast-math.
#pragma once
#include "cpu/kernels.h"
#include "cuda/launch.h"

namespace pylandscape::cuda {

// exp(x - top) for x <= top; what a float32 difference loses to rounding is put back.
__device__ inline double exp_difference(double x, double top) { return exp(x - top); }
__device__ inline float exp_difference(float x, float top) {
  const double d = static_cast<double>(x) - static_cast<double>(top);
  const float near = static_cast<float>(d), e = expf(near);
  return near > -100.0f ? e + e * static_cast<float>(d - near) : e;
}

template <typename T>
__device__ T sigmoid(T x) {
  const T e = exp(x < T(0) ? x : -x);  // in (0, 1]
  return (x < T(0) ? e : T(1)) / (e + T(1));
}

// log(1 + exp(x)).
template <typename T>
__device__ T softplus(T x) {
  return (x < T(0) ? T(0) : x) + log1p(exp(x < T(0) ? x : -x));
}

template <typename T>
__device__ T relu(T x) {
  return x < T(0) ? T(0) : x;  // NaN stays
}

// By sinpi and cospi, whose reduction needs no local memory; off by |x| eps, as x itself is.
template <typename T>
__device__ T sine(T x) {
  return static_cast<T>(sinpi(double(x) * 0.31830988618379067));
}
template <typename T>
__device__ T cosine(T x) {
  return static_cast<T>(cospi(double(x) * 0.31830988618379067));
}

// t = tanh(log(1 + exp(x))) and 1 - t^2 (cpu/elementwise.inl).
template <typename T>
struct TanhSoftplus {
  T value, rest;
};
template <typename T>
__device__ TanhSoftplus<T> tanh_softplus(T x) {
  const T e = exp(x > T(20) ? T(20) : x), n = e * (e + T(2));
  return {n / (n + T(2)), T(4) * (n + T(1)) / ((n + T(2)) * (n + T(2)))};
}

// The functions that hessians.cu, short of registers, has no place for.
template <typename T, typename F>
__device__ void with_rarer_unary(cpu::Unary function, double a, double b, F f) {
  using cpu::Unary;
  const T ta = static_cast<T>(a), tb = static_cast<T>(b);
  switch (function) {
    case Unary::kHardswish:
      return f([](T v) {
        const T low = v + T(3) < T(0) ? T(0) : v + T(3);
        return v * (low > T(6) ? T(6) : low) / T(6);
      });
    case Unary::kMish: return f([](T v) { return v * tanh_softplus(v).value; });
    case Unary::kSoftsign: return f([](T v) { return v / (fabs(v) + T(1)); });
    case Unary::kThreshold: return f([=](T v) { return v <= ta ? tb : v; });
    case Unary::kLog: return f([](T v) { return log(v); });
    case Unary::kLog1p: return f([](T v) { return log1p(v); });
    case Unary::kSqrt: case Unary::kLength: return f([](T v) { return sqrt(v); });
    case Unary::kRsqrt: return f([](T v) { return T(1) / sqrt(v); });
    case Unary::kReciprocal: return f([=](T v) { return ta / v; });
    case Unary::kPower: return f([=](T v) { return static_cast<T>(pow(double(v), a)); });
    case Unary::kSin: return f([](T v) { return sine(v); });
    case Unary::kCos: return f([](T v) { return cosine(v); });
    case Unary::kErf: return f([](T v) { return erf(v); });
    case Unary::kPositive: return f([](T v) { return relu(v); });
    default: return;
  }
}

// f(function of one element): the choice is made once, outside of the loop that f holds.
// every: whether the rarer ones can come.
template <typename T, bool every = true, typename F>
__device__ void with_unary(cpu::Unary function, double a, double b, F f) {
  using cpu::Unary;
  const T ta = static_cast<T>(a), tb = static_cast<T>(b);
  switch (function) {
    case Unary::kAffine: return f([=](T v) { return v * ta + tb; });
    case Unary::kRelu: return f([](T v) { return relu(v); });
    case Unary::kLeakyRelu: return f([=](T v) { return v < T(0) ? v * ta : v; });
    case Unary::kTanh: return f([](T v) { return tanh(v); });
    case Unary::kSigmoid: return f([](T v) { return sigmoid(v); });
    case Unary::kGelu: return f([](T v) { return v * (T(0.5) * erfc(v * T(-0.70710678118654752))); });
    case Unary::kGeluTanh:
      return f([](T v) {
        const T inner = T(0.79788456080286536) * (v + T(0.044715) * v * v * v);
        return v * sigmoid(inner + inner);  // (1 + tanh(u)) / 2 = sigmoid(2u)
      });
    case Unary::kSilu: return f([](T v) { return v * sigmoid(v); });
    case Unary::kSoftplus:
      return f([=](T v) { return v * ta > tb ? v : softplus(v * ta) / ta; });
    case Unary::kElu: return f([=](T v) { return v > T(0) ? v * tb : tb * ta * expm1(v); });
    case Unary::kClamp: case Unary::kHardtanh:
      return f([=](T v) {
        const T low = v < ta ? ta : v;
        return low > tb ? tb : low;
      });
    case Unary::kSquare: return f([](T v) { return v * v; });
    case Unary::kAbs: return f([](T v) { return fabs(v); });
    case Unary::kExp: return f([](T v) { return exp(v); });
    default:
      if constexpr (every) with_rarer_unary<T>(function, a, b, f);
  }
}

template <typename T, typename F>
__device__ void with_rarer_derivatives(cpu::Unary function, double a, F f) {
  using cpu::Unary;
  const T ta = static_cast<T>(a);
  const auto straight = [](auto slope) {
    return [=](T v, T& first, T& second) { first = slope(v), second = T(0); };
  };
  switch (function) {
    case Unary::kHardswish:
      return f([](T v, T& first, T& second) {
        first = v <= T(-3) ? T(0) : v < T(3) ? v / T(3) + T(0.5) : T(1);
        second = v > T(-3) && v < T(3) ? T(1.0 / 3.0) : T(0);
      });
    case Unary::kMish:  // x t(x): t' = (1 - t^2) s, s the sigmoid
      return f([](T v, T& first, T& second) {
        const TanhSoftplus<T> t = tanh_softplus(v);
        const T s = sigmoid(v), slope = t.rest * s;
        first = t.value + v * slope;
        second = slope * (T(2) + v * ((T(1) - s) - T(2) * t.value * s));
      });
    case Unary::kSoftsign:
      return f([](T v, T& first, T& second) {
        const T share = T(1) / (fabs(v) + T(1));
        first = share * share;
        second = (v > T(0) ? T(-2) : v < T(0) ? T(2) : T(0)) * first * share;
      });
    case Unary::kThreshold: return f(straight([=](T v) { return v <= ta ? T(0) : T(1); }));
    case Unary::kLog:
      return f([](T v, T& first, T& second) { first = T(1) / v, second = -first * first; });
    case Unary::kLog1p:
      return f([](T v, T& first, T& second) {
        first = T(1) / (v + T(1)), second = -first * first;
      });
    case Unary::kSqrt:
      return f([](T v, T& first, T& second) {
        first = T(0.5) / sqrt(v), second = T(-0.5) * first / v;
      });
    case Unary::kLength:
      return f([](T v, T& first, T& second) {
        first = v == T(0) ? T(0) : T(0.5) / sqrt(v), second = T(-0.5) * first / v;
      });
    case Unary::kRsqrt:
      return f([](T v, T& first, T& second) {
        first = T(-0.5) / (sqrt(v) * v), second = T(-1.5) * first / v;
      });
    case Unary::kReciprocal:
      return f([=](T v, T& first, T& second) {
        first = -ta / (v * v), second = T(-2) * first / v;
      });
    case Unary::kPower:
      return f([=](T v, T& first, T& second) {
        first = static_cast<T>(a * pow(double(v), a - 1));
        second = a == 1 ? T(0) : static_cast<T>(a * (a - 1) * pow(double(v), a - 2));
      });
    case Unary::kSin:
      return f([](T v, T& first, T& second) { first = cosine(v), second = -sine(v); });
    case Unary::kCos:
      return f([](T v, T& first, T& second) { first = -sine(v), second = -cosine(v); });
    case Unary::kErf:  // f' = 2 / sqrt(pi) exp(-x^2)
      return f([](T v, T& first, T& second) {
        first = T(1.1283791670955126) * exp(-v * v), second = T(-2) * v * first;
      });
    case Unary::kPositive:
      return f([](T v, T& first, T& second) {
        first = v > T(0) ? T(1) : T(0), second = T(0) / (v == T(0) ? T(0) : T(1));
      });
    default: return;
  }
}

// f(function of x, first, second): first and second derivative of one element.
template <typename T, bool every = true, typename F>
__device__ void with_unary_derivatives(cpu::Unary function, double a, double b, F f) {
  using cpu::Unary;
  const T ta = static_cast<T>(a), tb = static_cast<T>(b);
  const auto straight = [](auto slope) {
    return [=](T v, T& first, T& second) { first = slope(v), second = T(0); };
  };
  switch (function) {
    case Unary::kAffine: return f(straight([=](T) { return ta; }));
    case Unary::kRelu: return f(straight([](T v) { return v > T(0) ? T(1) : T(0); }));
    case Unary::kLeakyRelu: return f(straight([=](T v) { return v > T(0) ? T(1) : ta; }));
    case Unary::kClamp:
      return f(straight([=](T v) { return v >= ta && v <= tb ? T(1) : T(0); }));
    case Unary::kHardtanh:
      return f(straight([=](T v) { return v > ta && v < tb ? T(1) : T(0); }));
    case Unary::kAbs:
      return f(straight([](T v) { return v > T(0) ? T(1) : v < T(0) ? T(-1) : T(0); }));
    case Unary::kSquare: return f([](T v, T& first, T& second) { first = v + v, second = T(2); });
    case Unary::kExp: return f([](T v, T& first, T& second) { first = second = exp(v); });
    case Unary::kTanh:
      return f([](T v, T& first, T& second) {
        const T y = tanh(v);
        first = T(1) - y * y, second = T(-2) * y * first;
      });
    case Unary::kSigmoid:
      return f([](T v, T& first, T& second) {
        const T y = sigmoid(v);
        first = y * (T(1) - y), second = first * (T(1) - T(2) * y);
      });
    case Unary::kSoftplus:
      return f([=](T v, T& first, T& second) {
        const T y = sigmoid(v * ta);
        first = v * ta > tb ? T(1) : y, second = v * ta >= tb ? T(0) : ta * y * (T(1) - y);
      });
    case Unary::kElu:
      return f([=](T v, T& first, T& second) {
        const T slope = tb * ta * (expm1(v > T(0) ? T(0) : v) + T(1));
        first = v > T(0) ? tb : slope, second = v >= T(0) ? T(0) : slope;
      });
    case Unary::kSilu:
      return f([](T v, T& first, T& second) {
        const T y = sigmoid(v), slope = y * (T(1) - y);
        first = y + v * slope, second = slope * (T(2) + v * (T(1) - T(2) * y));
      });
    case Unary::kGelu:
      return f([](T v, T& first, T& second) {
        const T density = T(0.3989422804014327) * exp(v * v * T(-0.5));
        first = T(0.5) * erfc(v * T(-0.70710678118654752)) + v * density;
        second = density * (T(2) - v * v);
      });
    case Unary::kGeluTanh:  // v s(u), s the sigmoid, u = 2 sqrt(2/pi) (v + c v^3)
      return f([](T v, T& first, T& second) {
        const T scale = T(1.5957691216057308), cubic = T(0.044715);
        const T u = scale * (v + cubic * v * v * v);
        const T du = scale * (T(1) + T(3) * cubic * v * v), d2u = T(6) * scale * cubic * v;
        const T s = sigmoid(u), slope = s * (T(1) - s);
        first = s + v * slope * du;
        second = slope * (T(2) * du + v * (d2u + (T(1) - T(2) * s) * du * du));
      });
    default:
      if constexpr (every) with_rarer_derivatives<T>(function, a, f);
  }
}

template <typename T, typename F>
__device__ void with_binary(cpu::Binary function, F f) {
  switch (function) {
    case cpu::Binary::kAdd: return f([](T x, T y) { return x + y; });
    case cpu::Binary::kSub: return f([](T x, T y) { return x - y; });
    case cpu::Binary::kMul: return f([](T x, T y) { return x * y; });
    case cpu::Binary::kDiv: return f([](T x, T y) { return x / y; });
  }
}

}  // namespace pylandscape::cuda
