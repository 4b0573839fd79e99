// Elementwise kernels, layer_norm and softmax. Only included by kernels.inl.
namespace pylandscape::cpu {
namespace {

// y[i] = f(x[i]) for vectors; n need not be a multiple of the vector length.
template <typename T, typename F>
inline void map(int64_t n, const T* x, T* y, F f) {
  constexpr int N = kLanes<T>;
  int64_t i = 0;
  for (; i + 2 * N <= n; i += 2 * N) {  // two chains at once
    const Vec<T> first = f(load<T, N>(x + i)), second = f(load<T, N>(x + i + N));
    store<T, N>(y + i, first);
    store<T, N>(y + i + N, second);
  }
  for (; i + N <= n; i += N) store<T, N>(y + i, f(load<T, N>(x + i)));
  if (i < n) {
    alignas(64) T tail[N] = {};
    for (int64_t j = i; j < n; ++j) tail[j - i] = x[j];
    store<T, N>(tail, f(load<T, N>(tail)));
    for (int64_t j = i; j < n; ++j) y[j] = tail[j - i];
  }
}

// t = tanh(log(1 + exp(x))) = n / (n + 2) with n = e (e + 2), e = exp(x), and 1 - t^2.
template <typename T, int N>
struct TanhSoftplus {
  Vec<T, N> value, rest;
};
template <typename T, int N>
inline TanhSoftplus<T, N> tanh_softplus(Vec<T, N> x) {
  constexpr T kOne = T(20);  // from here on t rounds to 1
  const Vec<T, N> e = exp<T, N>(x > kOne ? splat<T, N>(kOne) : x), n = e * (e + T(2));
  return {n / (n + T(2)), T(4) * (n + T(1)) / ((n + T(2)) * (n + T(2)))};
}

template <typename T>
void unary(Unary f, double a, double b, int64_t n, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  using V = Vec<T, N>;
  const T ta = static_cast<T>(a), tb = static_cast<T>(b);
  switch (f) {
    case Unary::kAffine: return map(n, x, y, [=](V v) { return v * ta + tb; });
    case Unary::kRelu: case Unary::kPositive:
      return map(n, x, y, [](V v) { return vmax(v, V{}); });
    case Unary::kLeakyRelu: return map(n, x, y, [=](V v) { return v < 0 ? v * ta : v; });
    case Unary::kTanh: return map(n, x, y, [](V v) { return tanh<T, N>(v); });
    case Unary::kSigmoid: return map(n, x, y, [](V v) { return sigmoid<T, N>(v); });
    case Unary::kGelu: return map(n, x, y, [](V v) { return v * normal_cdf<T, N>(v); });
    case Unary::kGeluTanh:
      return map(n, x, y, [](V v) {
        const V inner = T(0.79788456080286536) * (v + T(0.044715) * v * v * v);
        return v * sigmoid<T, N>(inner + inner);  // (1 + tanh(u)) / 2 = sigmoid(2u)
      });
    case Unary::kSilu: return map(n, x, y, [](V v) { return v * sigmoid<T, N>(v); });
    case Unary::kSoftplus:
      return map(n, x, y, [=](V v) { return v * ta > tb ? v : softplus<T, N>(v * ta) / ta; });
    case Unary::kElu:
      return map(n, x, y, [=](V v) {
        return v > 0 ? v * tb : tb * ta * expm1<T, N>(v > 0 ? V{} : v);
      });
    case Unary::kClamp: case Unary::kHardtanh:
      return map(n, x, y, [=](V v) {
        const V low = v < ta ? splat<T, N>(ta) : v;
        return low > tb ? splat<T, N>(tb) : low;
      });
    case Unary::kSquare: return map(n, x, y, [](V v) { return v * v; });
    case Unary::kAbs: return map(n, x, y, [](V v) { return vabs(v); });
    case Unary::kExp: return map(n, x, y, [](V v) { return exp<T, N>(v); });
    case Unary::kHardswish:
      return map(n, x, y, [](V v) {
        const V low = v + T(3) < 0 ? V{} : v + T(3);
        return v * (low > T(6) ? splat<T, N>(T(6)) : low) / T(6);
      });
    case Unary::kMish: return map(n, x, y, [](V v) { return v * tanh_softplus<T, N>(v).value; });
    case Unary::kSoftsign: return map(n, x, y, [](V v) { return v / (vabs(v) + T(1)); });
    case Unary::kThreshold:
      return map(n, x, y, [=](V v) { return v <= ta ? splat<T, N>(tb) : v; });
    case Unary::kLog: return map(n, x, y, [](V v) { return log<T, N>(v); });
    case Unary::kLog1p: return map(n, x, y, [](V v) { return log1p<T, N>(v); });
    case Unary::kSqrt: case Unary::kLength:
      return map(n, x, y, [](V v) { return root<T, N>(v); });
    case Unary::kRsqrt: return map(n, x, y, [](V v) { return T(1) / root<T, N>(v); });
    case Unary::kReciprocal: return map(n, x, y, [=](V v) { return ta / v; });
    case Unary::kPower: return map(n, x, y, [=](V v) { return power<T, N>(v, a); });
    case Unary::kSin: return map(n, x, y, [](V v) { return sine<T, N>(v, 0); });
    case Unary::kCos: return map(n, x, y, [](V v) { return sine<T, N>(v, 1); });
    case Unary::kErf: return map(n, x, y, [](V v) { return erf<T, N>(v); });
  }
}

// first = f'(x), second = f''(x) from f(vector) -> {f', f''}.
template <typename T, typename F>
inline void map_two(int64_t n, const T* x, T* first, T* second, F f) {
  constexpr int N = kLanes<T>;
  for (int64_t i = 0; i < n; i += N) {  // n is a multiple of the lanes: features times columns
    Vec<T> d1, d2;
    f(load<T, N>(x + i), d1, d2);
    store<T, N>(first + i, d1);
    store<T, N>(second + i, d2);
  }
}

template <typename T>
void unary_derivatives(Unary f, double a, double b, int64_t n, const T* x, T* first, T* second) {
  constexpr int N = kLanes<T>;
  using V = Vec<T, N>;
  const T ta = static_cast<T>(a), tb = static_cast<T>(b);
  const V one = splat<T, N>(T(1));
  const auto constant_slopes = [&](auto slope) {
    return map_two(n, x, first, second, [&](V v, V& d1, V& d2) {
      d1 = slope(v);
      d2 = V{};
    });
  };
  switch (f) {
    case Unary::kAffine: return constant_slopes([=](V) { return splat<T, N>(ta); });
    case Unary::kRelu: return constant_slopes([=](V v) { return v > 0 ? one : V{}; });
    case Unary::kLeakyRelu:
      return constant_slopes([=](V v) { return v > 0 ? one : splat<T, N>(ta); });
    case Unary::kClamp:
      return constant_slopes([=](V v) { return (v >= ta) & (v <= tb) ? one : V{}; });
    case Unary::kHardtanh:
      return constant_slopes([=](V v) { return (v > ta) & (v < tb) ? one : V{}; });
    case Unary::kAbs: return constant_slopes([=](V v) { return v > 0 ? one : v < 0 ? -one : V{}; });
    case Unary::kSquare:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = v + v;
        d2 = splat<T, N>(T(2));
      });
    case Unary::kExp:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) { d1 = d2 = exp<T, N>(v); });
    case Unary::kTanh:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        const V y = tanh<T, N>(v);
        d1 = T(1) - y * y;
        d2 = T(-2) * y * d1;
      });
    case Unary::kSigmoid:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        const V y = sigmoid<T, N>(v);
        d1 = y * (T(1) - y);
        d2 = d1 * (T(1) - T(2) * y);
      });
    case Unary::kSoftplus:
      return map_two(n, x, first, second, [=](V v, V& d1, V& d2) {
        const V y = sigmoid<T, N>(v * ta);
        d1 = v * ta > tb ? one : y;
        d2 = v * ta >= tb ? V{} : ta * y * (T(1) - y);
      });
    case Unary::kElu:
      return map_two(n, x, first, second, [=](V v, V& d1, V& d2) {
        const V slope = tb * ta * (expm1<T, N>(v > 0 ? V{} : v) + T(1));
        d1 = v > 0 ? splat<T, N>(tb) : slope;
        d2 = v >= 0 ? V{} : slope;
      });
    case Unary::kSilu:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        const V y = sigmoid<T, N>(v), slope = y * (T(1) - y);
        d1 = y + v * slope;
        d2 = slope * (T(2) + v * (T(1) - T(2) * y));
      });
    case Unary::kGelu:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        const V density = T(0.3989422804014327) * exp_nonpositive<T, N>(v * v * T(-0.5));
        d1 = normal_cdf<T, N>(v) + v * density;
        d2 = density * (T(2) - v * v);
      });
    case Unary::kHardswish:
      return map_two(n, x, first, second, [=](V v, V& d1, V& d2) {
        d1 = v <= T(-3) ? V{} : v < T(3) ? v / T(3) + T(0.5) : one;
        d2 = (v > T(-3)) & (v < T(3)) ? splat<T, N>(T(1.0 / 3.0)) : V{};
      });
    case Unary::kMish:  // x t(x): t' = (1 - t^2) s, s the sigmoid
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        const auto t = tanh_softplus<T, N>(v);
        const V s = sigmoid<T, N>(v), slope = t.rest * s;
        d1 = t.value + v * slope;
        d2 = slope * (T(2) + v * ((T(1) - s) - T(2) * t.value * s));
      });
    case Unary::kSoftsign:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        const V share = T(1) / (vabs(v) + T(1));
        d1 = share * share;
        d2 = (v > 0 ? splat<T, N>(T(-2)) : v < 0 ? splat<T, N>(T(2)) : V{}) * d1 * share;
      });
    case Unary::kThreshold: return constant_slopes([=](V v) { return v <= ta ? V{} : one; });
    case Unary::kLog:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = T(1) / v;
        d2 = -d1 * d1;
      });
    case Unary::kLog1p:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = T(1) / (v + T(1));
        d2 = -d1 * d1;
      });
    case Unary::kSqrt:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = T(0.5) / root<T, N>(v);
        d2 = T(-0.5) * d1 / v;
      });
    case Unary::kLength:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = v == 0 ? V{} : T(0.5) / root<T, N>(v);
        d2 = T(-0.5) * d1 / v;  // NaN at zero
      });
    case Unary::kPositive:
      return map_two(n, x, first, second, [=](V v, V& d1, V& d2) {
        d1 = v > 0 ? one : V{};
        d2 = V{} / (v == 0 ? V{} : one);  // NaN at zero
      });
    case Unary::kRsqrt:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = T(-0.5) / (root<T, N>(v) * v);
        d2 = T(-1.5) * d1 / v;
      });
    case Unary::kReciprocal:
      return map_two(n, x, first, second, [=](V v, V& d1, V& d2) {
        d1 = -ta / (v * v);
        d2 = T(-2) * d1 / v;
      });
    case Unary::kPower:
      return map_two(n, x, first, second, [=](V v, V& d1, V& d2) {
        d1 = ta * power<T, N>(v, a - 1);
        d2 = a == 1 ? V{} : static_cast<T>(a * (a - 1)) * power<T, N>(v, a - 2);
      });
    case Unary::kSin:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = sine<T, N>(v, 1);
        d2 = -sine<T, N>(v, 0);
      });
    case Unary::kCos:
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = -sine<T, N>(v, 0);
        d2 = -sine<T, N>(v, 1);
      });
    case Unary::kErf:  // f' = 2 / sqrt(pi) exp(-x^2)
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        d1 = T(1.1283791670955126) * exp_nonpositive<T, N>(-v * v);
        d2 = T(-2) * v * d1;
      });
    case Unary::kGeluTanh:  // v s(u), s the sigmoid, u = 2 sqrt(2/pi) (v + c v^3)
      return map_two(n, x, first, second, [](V v, V& d1, V& d2) {
        constexpr T kScale = T(1.5957691216057308), kCubic = T(0.044715);
        const V u = kScale * (v + kCubic * v * v * v);
        const V du = kScale * (T(1) + T(3) * kCubic * v * v), d2u = T(6) * kScale * kCubic * v;
        const V s = sigmoid<T, N>(u), slope = s * (T(1) - s);
        d1 = s + v * slope * du;
        d2 = slope * (T(2) * du + v * (d2u + (T(1) - T(2) * s) * du * du));
      });
  }
}

template <typename T, typename F>
inline void zip(int64_t n, const T* x, const T* y, T* out, F f) {
  constexpr int N = kLanes<T>;
  int64_t i = 0;
  for (; i + N <= n; i += N) store<T, N>(out + i, f(load<T, N>(x + i), load<T, N>(y + i)));
  for (; i < n; ++i) out[i] = f(x[i], y[i]);
}

template <typename T>
void binary(Binary op, int64_t n, const T* x, const T* y, T* out) {
  switch (op) {
    case Binary::kAdd: return zip(n, x, y, out, [](auto a, auto b) { return a + b; });
    case Binary::kSub: return zip(n, x, y, out, [](auto a, auto b) { return a - b; });
    case Binary::kMul: return zip(n, x, y, out, [](auto a, auto b) { return a * b; });
    case Binary::kDiv: return zip(n, x, y, out, [](auto a, auto b) { return a / b; });
  }
}

template <typename T>
void fill_rows(int64_t features, int64_t cols, const T* values, T* y) {
  for (int64_t f = 0; f < features; ++f)
    for (int64_t c = 0; c < cols; ++c) y[f * cols + c] = values[f];
}

// One sum in double for every lane of a vector of T.
template <typename T>
struct WideSum {
  static constexpr int D = kLanes<double>, kParts = kLanes<T> / D;
  Vec<double, D> part[kParts] = {};
  void add(const T* x) {
    for (int h = 0; h < kParts; ++h) part[h] += load_double<T, D>(x + h * D);
  }
  // Of what is in a register: a vector that was just stored cannot be read by halves at once.
  void add(Vec<T> x) { add_parts(x, std::make_integer_sequence<int, D>{}); }
  void add_square(const T* x) {
    for (int h = 0; h < kParts; ++h) {
      const Vec<double, D> v = load_double<T, D>(x + h * D);
      part[h] += v * v;
    }
  }
  // f(sum), rounded.
  template <typename F>
  Vec<T> map(F f) const {
    alignas(64) T out[kLanes<T>];
    for (int h = 0; h < kParts; ++h)
      for (int l = 0; l < D; ++l) out[h * D + l] = static_cast<T>(f(part[h][l]));
    return load<T>(out);
  }
  // 1 / sum, rounded.
  Vec<T> inverse() const {
    alignas(64) T out[kLanes<T>];
    for (int h = 0; h < kParts; ++h) store<T, D>(out + h * D, narrow<T, D>(1.0 / part[h]));
    return load<T>(out);
  }

 private:
  template <int... I>
  void add_parts(Vec<T> x, std::integer_sequence<int, I...>) {
    if constexpr (kParts == 1) {
      part[0] += x;
    } else {
      static_assert(kParts == 2);
      part[0] += widen<D>(__builtin_shufflevector(x, x, I...));
      part[1] += widen<D>(__builtin_shufflevector(x, x, (D + I)...));
    }
  }
};

// Mean and variance are summed in double, in two passes, and the mean is kept in two parts: what
// torch's float32 kernel loses to rounding is not lost here.
template <typename T>
void layer_norm(int64_t outer, int64_t size, int64_t cols, double eps, const T* gain,
                const T* shift, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  const double share = 1.0 / double(size);
  for (int64_t o = 0; o < outer; ++o, x += size * cols, y += size * cols) {
    for (int64_t c = 0; c < cols; c += N) {
      WideSum<T> sum, squares;
      for (int64_t f = 0; f < size; ++f) sum.add(x + f * cols + c);
      const Vec<T> mean = sum.map([=](double s) { return s * share; });
      const Vec<T> rest = sum.map([=](double s) { return s * share - double(T(s * share)); });
      for (int64_t f = 0; f < size; ++f) {
        store<T, N>(y + f * cols + c, (load<T>(x + f * cols + c) - mean) - rest);
        squares.add_square(y + f * cols + c);
      }
      const Vec<T> scale =
          squares.map([=](double s) { return 1.0 / __builtin_sqrt(s * share + eps); });
      for (int64_t f = 0; f < size; ++f) {
        Vec<T> v = load<T>(y + f * cols + c) * scale;
        if (gain != nullptr) v *= gain[f];
        if (shift != nullptr) v += shift[f];
        store<T, N>(y + f * cols + c, v);
      }
    }
  }
}

template <typename T>
inline void softmax_column(int64_t size, int64_t stride, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  Vec<T> top = load<T>(x), other = top;
  int64_t at = 1;
  for (; at + 1 < size; at += 2) {
    top = vmax(load<T>(x + at * stride), top);
    other = vmax(load<T>(x + (at + 1) * stride), other);
  }
  if (at < size) top = vmax(load<T>(x + at * stride), top);
  top = vmax(other, top);
  WideSum<T> sum;
  for (int64_t f = 0; f < size; ++f) {
    const Vec<T> e = exp_below<T, N>(load<T>(x + f * stride), top);
    store<T, N>(y + f * stride, e);
    sum.add(e);
  }
  const Vec<T> share = sum.inverse();
  for (int64_t f = 0; f < size; ++f) store<T, N>(y + f * stride, load<T>(y + f * stride) * share);
}

template <typename T>
inline void log_softmax_column(int64_t size, int64_t stride, const T* x, T* y) {
  constexpr int N = kLanes<double>;
  using V = Vec<double, N>;
  V top = load_double<T, N>(x), sum{};
  for (int64_t f = 1; f < size; ++f) top = vmax(load_double<T, N>(x + f * stride), top);
  for (int64_t f = 0; f < size; ++f)
    sum += exp_nonpositive<double, N>(load_double<T, N>(x + f * stride) - top);
  const V shift = log_positive<double, N>(sum);
  for (int64_t f = 0; f < size; ++f) {
    const V v = (load_double<T, N>(x + f * stride) - top) - shift;
    for (int l = 0; l < N; ++l) y[f * stride + l] = static_cast<T>(v[l]);
  }
}

template <typename T>
void softmax(bool log, int64_t outer, int64_t size, int64_t inner, int64_t cols, const T* x, T* y) {
  const int64_t stride = inner * cols;
  for (int64_t o = 0; o < outer; ++o, x += size * stride, y += size * stride) {
    if (log)
      for (int64_t c = 0; c < stride; c += kLanes<double>)
        log_softmax_column(size, stride, x + c, y + c);
    else
      for (int64_t c = 0; c < stride; c += kLanes<T>) softmax_column(size, stride, x + c, y + c);
  }
}

}  // namespace
}  // namespace pylandscape::cpu
