// Elementary functions on vectors. Only included by kernels.inl.
//
// exp and expm1: x = n ln 2 + r with |r| <= ln(2)/2, e^r = 1 + r + r^2 q(r), scaled by 2^n. log and
// log1p: 2 atanh(s) = 2 s + 2 s^3 q(s^2). The q are minimax polynomials (Remez), lowest power first,
// with the error of the result named beside them. tanh, sigmoid and the other activations follow from
// these. Tests hold every function to a few ulp against float64/mpmath.
namespace pylandscape::cpu {
namespace {

template <typename T>
struct Float;
template <>
struct Float<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integer
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  // kExpOver: from about here on 2^n / 2 is infinite.
  static constexpr float kExpMin = -86.6f, kExpMax = 88.72283f, kExpOver = 89.5f, kTanhMax = 10.0f;
  static constexpr double kExp[] = {0.499999934478, 0.166665206316, 0.0416683880387,
                                    0.00836871688852, 0.00138145990178};  // 3e-9
  static constexpr double kLog[] = {0.33333388223207752, 0.19988766342592963,
                                    0.14935993974927975};  // up to 2 atanh(0.1716); 8e-10
  static constexpr double kLog1p[] = {0.333333378133398, 0.19999438631512963,
                                      0.1430844985136445, 0.10713739207966473,
                                      0.12150834984752119};  // up to 2 atanh(1/3); 1e-10
};
template <>
struct Float<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLn2Hi = 6.93147180369123816490e-01, kLn2Lo = 1.90821492927058770002e-10;
  static constexpr double kExpMin = -707.6, kExpMax = 709.782712893384, kExpOver = 710.5;
  static constexpr double kTanhMax = 22.0;
  static constexpr double kExp[] = {
      0.50000000000000106272,   0.16666666666666412518,    0.041666666666530157572,
      0.0083333333334944636818, 0.0013888888943630379832,  0.00019841269506575745492,
      2.4801493098635329606e-5, 2.7557586375678645834e-6,  2.7630248473168030493e-7,
      2.5000061183251387353e-8};  // 4e-18
  static constexpr double kLog[] = {
      0.33333333333333672527, 0.1999999999970699314,  0.14285714371278310502,
      0.11111099277201692345, 0.090917826863131103123, 0.076570110327688932648,
      0.073981255557199262911};  // 1e-18
  static constexpr double kLog1p[] = {
      0.33333333333333151709,  0.2000000000007869692,   0.14285714273916788884,
      0.11111111985530706205,  0.090908719379380970057, 0.076932805052308152523,
      0.066504793971781490327, 0.060531035320097621301, 0.041697790037400071848,
      0.085098050838820871747};  // 1e-18
};

template <typename T, int N, int D>
PL_INLINE Vec<T, N> horner(const double (&c)[D], Vec<T, N> x) {
  Vec<T, N> p = splat<T, N>(T(c[D - 1]));
#pragma GCC unroll 20
  for (int i = D - 2; i >= 0; --i) p = p * x + T(c[i]);
  return p;
}

// x = n ln 2 + r for x within [kExpMin, kExpMax]; shifted holds n in its lowest bits.
template <typename T, int N>
PL_INLINE Vec<T, N> reduce_argument(Vec<T, N> x, Vec<T, N>& shifted) {
  using F = Float<T>;
  shifted = x * T(1.4426950408889634) + F::kMagic;
  const Vec<T, N> n = shifted - F::kMagic;
  return (x - n * F::kLn2Hi) - n * F::kLn2Lo;
}

// expm1(r).
template <typename T, int N>
PL_INLINE Vec<T, N> expm1_reduced(Vec<T, N> r) {
  return r + (r * r) * horner<T, N>(Float<T>::kExp, r);
}
// 2^(n - less).
template <typename T, int N>
PL_INLINE Vec<T, N> power_of_two(Vec<T, N> shifted, int less) {
  using F = Float<T>;
  const IVec<T, N> bits = reinterpret_cast<IVec<T, N>>(shifted) + (F::kBias - less);
  return reinterpret_cast<Vec<T, N>>(bits << F::kMantissa);
}

template <typename T, int N>
PL_INLINE void reduce_exp(Vec<T, N> x, Vec<T, N>& em, Vec<T, N>& half_scale) {
  Vec<T, N> shifted;
  const Vec<T, N> r = reduce_argument<T, N>(x, shifted);
  em = expm1_reduced<T, N>(r), half_scale = power_of_two<T, N>(shifted, 1);
}

// exp(x) for x <= 0: zero below kExpMin (where 2^n / 2 leaves the normal range), NaN stays.
template <typename T, int N>
PL_INLINE Vec<T, N> exp_nonpositive(Vec<T, N> x) {
  Vec<T, N> em, half;
  reduce_exp<T, N>(x, em, half);
  const Vec<T, N> y = (em + T(1)) * (half + half);
  return x < Float<T>::kExpMin ? Vec<T, N>{} : y;
}

// exp(x - top) for x <= top. In float32, where a difference of 100 costs seven bits of the result,
// what it loses to rounding is added to the reduced argument.
template <typename T, int N>
inline Vec<T, N> exp_below(Vec<T, N> x, Vec<T, N> top) {
  const Vec<T, N> d = x - top;
  Vec<T, N> shifted;
  Vec<T, N> r = reduce_argument<T, N>(d, shifted);
  if constexpr (sizeof(T) == sizeof(float)) {
    const Vec<T, N> back = d - x;
    r += (x - (d - back)) - (top + back);
  }
  // (em + 1) 2^n; a multiplication by a power of two rounds nothing.
  const Vec<T, N> scale = power_of_two<T, N>(shifted, 0), y = expm1_reduced<T, N>(r) * scale + scale;
  return d < Float<T>::kExpMin ? Vec<T, N>{} : y;  // also where x is -inf
}

template <typename T, int N>
PL_INLINE Vec<T, N> exp(Vec<T, N> x) {
  using F = Float<T>;
  Vec<T, N> em, half;
  reduce_exp<T, N>(vmin(x, F::kExpOver), em, half);
  const Vec<T, N> y = ((em + T(1)) * half) * T(2);
  return x < F::kExpMin ? Vec<T, N>{} : y;
}

// exp(x) - 1, accurate near 0; x <= kExpMax.
template <typename T, int N>
inline Vec<T, N> expm1(Vec<T, N> x) {
  using F = Float<T>;
  Vec<T, N> em, half;
  reduce_exp<T, N>(x < F::kExpMin ? splat<T, N>(F::kExpMin) : x, em, half);
  return (em * half + (half - T(0.5))) * T(2);
}

// All bits but the sign.
template <typename V>
inline auto magnitude_bits(V x) {
  using I = decltype(x < x);
  constexpr int kSign = sizeof(x[0]) * 8 - 1;
  return I{} + static_cast<decltype(I{}[0] + 0)>((uint64_t{1} << kSign) - 1);
}
template <typename V>
inline V vabs(V x) {
  return reinterpret_cast<V>(reinterpret_cast<decltype(x < x)>(x) & magnitude_bits(x));
}
// y >= 0 with the sign of x.
template <typename V>
inline V with_sign(V y, V x) {
  using I = decltype(x < x);
  return reinterpret_cast<V>(reinterpret_cast<I>(y) | (reinterpret_cast<I>(x) & ~magnitude_bits(x)));
}

template <typename T, int N>
PL_INLINE Vec<T, N> tanh(Vec<T, N> x) {
  using V = Vec<T, N>;
  const V clamped = vmin(vabs(x), Float<T>::kTanhMax);
  V em, half;
  reduce_exp<T, N>(clamped + clamped, em, half);
  const V t = em * half + (half - T(0.5));  // expm1(2 |x|) / 2
  return with_sign<V>(t / (t + T(1)), x);
}

// 1 / (1 + exp(-x)), which an infinite 2^n makes zero.
template <typename T, int N>
PL_INLINE Vec<T, N> sigmoid(Vec<T, N> x) {
  using F = Float<T>;
  using V = Vec<T, N>;
  V em, half;
  reduce_exp<T, N>(vmax(vmin(-x, F::kExpOver), splat<T, N>(F::kExpMin)), em, half);
  return T(0.5) / (T(0.5) + (em + T(1)) * half);
}

// 2 atanh(s) = 2 (s + s^3 q(s^2)).
template <typename T, int N, int D>
PL_INLINE Vec<T, N> twice_atanh(const double (&q)[D], Vec<T, N> s) {
  const Vec<T, N> s2 = s * s;
  return T(2) * (s + s * (s2 * horner<T, N>(q, s2)));
}

// log(x) for finite normal x > 0; NaN stays.
template <typename T, int N>
PL_INLINE Vec<T, N> log_positive(Vec<T, N> x) {
  using F = Float<T>;
  using V = Vec<T, N>;
  using Int = std::make_unsigned_t<typename IntOf<T>::type>;
  typedef Int U __attribute__((vector_size(N * sizeof(T))));
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)): the offset moves the split from 1 to sqrt(1/2). e gets
  // the bias, so that it is positive, and becomes a number as the low bits of 2^kMantissa.
  constexpr Int kOffset = sizeof(T) == 4 ? Int(0x3f3504f3) : Int(0x3fe6a09e667f3bcdULL);
  constexpr Int kOne = Int(F::kBias) << F::kMantissa, kWhole = Int(F::kBias + F::kMantissa)
                                                               << F::kMantissa;
  constexpr T kShift = T((Int(1) << F::kMantissa) + Int(F::kBias));
  const U bits = reinterpret_cast<U>(x) + (kOne - kOffset);
  const V e = reinterpret_cast<V>((bits >> F::kMantissa) | kWhole) - kShift;
  const V m = reinterpret_cast<V>((bits & ((Int(1) << F::kMantissa) - 1)) + kOffset);
  const V y = twice_atanh<T, N>(F::kLog, (m - T(1)) / (m + T(1)));
  const V result = e * F::kLn2Hi + (y + e * F::kLn2Lo);
  return x == x ? result : x;
}

// log(x): -inf at 0, NaN below; subnormal numbers too.
template <typename T, int N>
inline Vec<T, N> log(Vec<T, N> x) {
  using F = Float<T>;
  using V = Vec<T, N>;
  constexpr int kUp = F::kMantissa + 2;  // brings every subnormal number into the normal range
  constexpr T kScale = T(int64_t{1} << kUp), kInf = T(__builtin_inf());
  constexpr T kLeast = sizeof(T) == 4 ? T(__FLT_MIN__) : T(__DBL_MIN__);
  const V y = log_positive<T, N>(x < kLeast ? x * kScale : x);
  const V found = x < kLeast ? y - T(kUp * 0.693147180559945309) : y;
  const V low = x < 0 ? splat<T, N>(T(__builtin_nan(""))) : splat<T, N>(-kInf);
  return x <= 0 ? low : x == kInf ? x : found;
}

// log(1 + x): the rounding of 1 + x is made good by the quotient.
template <typename T, int N>
inline Vec<T, N> log1p(Vec<T, N> x) {
  const Vec<T, N> u = x + T(1), y = log<T, N>(u) * (x / (u - T(1)));
  return u == T(1) || x == T(__builtin_inf()) ? x : y;
}

// log(1 + u) for u in [0, 1].
template <typename T, int N>
PL_INLINE Vec<T, N> log1p_unit(Vec<T, N> u) {
  return twice_atanh<T, N>(Float<T>::kLog1p, u / (u + T(2)));
}

// log(1 + exp(x)).
template <typename T, int N>
inline Vec<T, N> softplus(Vec<T, N> x) {
  return vmax(x, Vec<T, N>{}) + log1p_unit<T, N>(exp_nonpositive<T, N>(-vabs(x)));
}

// Chebyshev fits in 40 digits. Small: erf(z)/z in z^2 on [0, 1], relative error 1e-9 and 8e-18.
// Tail: erfc(z) exp(z^2) in t = (z - k)/(z + k) on z in [1, 6], k = 2 and 3, error 3e-10 and 2e-20.
template <typename T>
struct ErfFit;
template <>
struct ErfFit<float> {
  static constexpr double kSmall[] = {1.1283791658483509,    -0.37612626666720331,
                                      0.11283594715160218,   -0.026854212010626412,
                                      5.189087423433974e-3,  -8.0168642871658695e-4,
                                      7.8758750626854883e-5};
  static constexpr double kTail[] = {0.25539567655524859,   -0.42718584608697693,
                                     0.24165813437907882,   -0.078978657308910117,
                                     3.7352553538276025e-3, 6.9974709701356166e-3,
                                     -8.7818117466304963e-4, -9.5795657326268006e-4,
                                     1.7761528754330538e-4};
  static constexpr double kCentre = 2.0;
};
template <>
struct ErfFit<double> {
  static constexpr double kSmall[] = {
      1.1283791670955126,    -0.3761263890318354,    0.11283791670945006,   -0.02686617064323777,
      5.2239776071164227e-3, -8.5483259753896921e-4, 1.2055294904839708e-4, -1.492473690741966e-5,
      1.6447424703317362e-6, -1.6208483801871706e-7, 1.3720064546777686e-8, -7.7958988270021422e-10};
  static constexpr double kTail[] = {
      0.17900115118138995,    -0.32623356004303723,   0.24560380171233091,   -0.15011593650077743,
      0.071665837197973469,   -0.024392499318655417,  4.2691363331483025e-3, 7.0774643851773535e-4,
      -5.9706195861583047e-4, 4.5255298034073953e-5,  6.4056733422068437e-5, -1.2860318447907675e-5,
      -7.9798177043487268e-6, 2.1169509641489687e-6,  1.2598817267482605e-6, -2.7269500546476834e-7,
      -2.3893874634747923e-7, -2.5925894581233315e-8};
  static constexpr double kCentre = 3.0;
};

// Phi(x), the normal distribution function.
template <typename T, int N>
inline Vec<T, N> normal_cdf(Vec<T, N> x) {
  using V = Vec<T, N>;
  using Fit = ErfFit<T>;
  const V z = vabs(x) * T(0.70710678118654752);
  const V erf_small = z * horner<T, N>(Fit::kSmall, z * z);
  const V capped = z > T(6) ? splat<T, N>(T(6)) : z;
  const V t = (capped - T(Fit::kCentre)) / (capped + T(Fit::kCentre));
  const V erfc_tail = exp_nonpositive<T, N>(-z * z) * horner<T, N>(Fit::kTail, t);
  const V upper = T(0.5) * (z < T(1) ? T(1) - erf_small : erfc_tail);  // P(X > |x|)
  return x < 0 ? upper : T(1) - upper;
}

template <typename T, int N>
inline Vec<T, N> erf(Vec<T, N> x) {
  using V = Vec<T, N>;
  using Fit = ErfFit<T>;
  const V z = vabs(x), capped = z > T(6) ? splat<T, N>(T(6)) : z;
  const V t = (capped - T(Fit::kCentre)) / (capped + T(Fit::kCentre));
  const V tail = T(1) - exp_nonpositive<T, N>(-capped * capped) * horner<T, N>(Fit::kTail, t);
  const V y = z < T(1) ? z * horner<T, N>(Fit::kSmall, z * z) : tail;
  return x != x ? x : x < 0 ? -y : y;
}

// f of every lane.
template <typename T, int N, typename F>
inline Vec<T, N> each_lane(Vec<T, N> x, F f) {
  alignas(64) T lanes[N];
  store<T, N>(lanes, x);
  for (int l = 0; l < N; ++l) lanes[l] = f(lanes[l]);
  return load<T, N>(lanes);
}

template <typename T, int N>
inline Vec<T, N> root(Vec<T, N> x) {
  return each_lane<T, N>(x, [](T v) {
    if constexpr (sizeof(T) == sizeof(float))
      return __builtin_sqrtf(v);
    else
      return __builtin_sqrt(v);
  });
}

// x^p: products for small whole powers, else libm's in double.
template <typename T, int N>
inline Vec<T, N> power(Vec<T, N> x, double p) {
  constexpr double kMostProducts = 8;
  if (p == 0) return splat<T, N>(T(1));
  const double size = p < 0 ? -p : p;
  if (size > kMostProducts || size != double(int(size)))
    return each_lane<T, N>(x, [=](T v) { return static_cast<T>(__builtin_pow(double(v), p)); });
  Vec<T, N> square = x, y = splat<T, N>(T(1));
  for (int rest = int(size); rest > 0; rest /= 2, square *= square)
    if (rest % 2 == 1) y *= square;
  return p < 0 ? T(1) / y : y;
}

// sin(x + quarter pi / 2), quarter 0 or 1. x = k pi/2 + r with pi/2 in three parts of 33 bits, so that k times the
// first two is exact; polynomials of r on [-pi/4, pi/4] (Taylor's, truncated below 2^-57).
template <int N>
inline Vec<double, N> sine_of_double(Vec<double, N> x, int quarter) {
  using V = Vec<double, N>;
  using I = IVec<double, N>;
  constexpr double kMost = 1e6;  // above, libm: k would have more than 20 bits
  const V magnitude = vabs(x);
  const V near = magnitude < kMost ? x : V{};
  const V shifted = near * 0.63661977236758134308 + Float<double>::kMagic;
  const V k = shifted - Float<double>::kMagic;
  const V r = ((near - k * 1.57079632673412561417e+00) - k * 6.07710050630396597660e-11) -
              k * 2.02226624879595063154e-21;
  const V z = r * r;
  constexpr double kSin[] = {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
                             1.0 / 6227020800.0, -1.0 / 1307674368000.0,
                             1.0 / 355687428096000.0};
  constexpr double kCos[] = {1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600,
                             -1.0 / 87178291200.0, 1.0 / 20922789888000.0,
                             -1.0 / 6402373705728000.0};
  const V sine = r + r * (z * horner<double, N>(kSin, z));
  const V cosine = 1.0 - (0.5 * z - z * z * horner<double, N>(kCos, z));
  const I turns = reinterpret_cast<I>(shifted) + int64_t{quarter};
  const V y = (turns & 1) == 0 ? sine : cosine;
  const V found = (turns & 2) == 0 ? y : -y;
  bool all = true;
  for (int l = 0; l < N; ++l) all = all && magnitude[l] < kMost;
  if (all) return found;
  V fixed = found;
  for (int l = 0; l < N; ++l)
    if (!(magnitude[l] < kMost))
      fixed[l] = quarter == 0 ? __builtin_sin(x[l]) : __builtin_cos(x[l]);
  return fixed;
}

// sin(x) for quarter = 0, cos(x) for 1; of float32 in double.
template <typename T, int N>
inline Vec<T, N> sine(Vec<T, N> x, int quarter) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return sine_of_double<N>(x, quarter);
  } else {
    constexpr int D = kLanes<double>;
    static_assert(N % D == 0);
    alignas(64) T lanes[N];
    store<T, N>(lanes, x);
    for (int first = 0; first < N; first += D) {
      const Vec<double, D> y = sine_of_double<D>(load_double<T, D>(lanes + first), quarter);
      for (int l = 0; l < D; ++l) lanes[first + l] = static_cast<T>(y[l]);
    }
    return load<T, N>(lanes);
  }
}

}  // namespace
}  // namespace pylandscape::cpu
