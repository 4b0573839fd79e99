// Losses, in double from the outputs. Only included by kernels.inl.
namespace pylandscape::cpu {
namespace {

constexpr int kD = kLanes<double>;
using VD = Vec<double, kD>;
using VI = IVec<double, kD>;

typedef int32_t Index32 __attribute__((vector_size(kD * sizeof(int32_t)), aligned(4), may_alias));

inline VI load_index(const int32_t* p) {
  const Index32 x = *reinterpret_cast<const Index32*>(p);
#if defined(__AVX512F__)
  return reinterpret_cast<VI>(_mm512_maskz_cvtepi32_epi64(0xff, reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<VI>(_mm256_cvtepi32_epi64(reinterpret_cast<__m128i>(x)));
#else
  return __builtin_convertvector(x, VI);
#endif
}

// Groups of kD columns that are worked on together, to hide the latency of exp and log. A tile's
// columns are a multiple of kLanes<T> = kGroups<T> * kD.
template <typename T>
constexpr int kGroups = kLanes<T> / kD;

// e^r = 1 + r + r^2 q(r), |r| <= ln(2)/2. For float32 outputs, which themselves are off by 6e-8, to
// 2e-14, which the sums of doubles keep; for float64 in full.
template <typename T>
struct LossExp {
  static constexpr double kQ[] = {0.49999999999664307048, 0.16666666667265195215,
                                  0.041666666962244178985, 0.0083333330950948669399,
                                  0.0013888811144349829363, 0.00019841539085536814958,
                                  0.000024880810022757217623, 2.7493066444412680197e-6};
  static constexpr bool kSplitLn2 = false;  // n ln 2 is off by 1e-15 where e^x is below e^-30
};
template <>
struct LossExp<double> {
  static constexpr auto& kQ = Float<double>::kExp;
  static constexpr bool kSplitLn2 = true;
};

// e = exp(d) for M vectors of d <= 0 side by side, each step for all of them. NaN stays. Below -700:
// zero where ToZero, else exp(-700), which no sum with a 1 in it notices.
template <typename T, bool ToZero, int M>
inline void loss_exp(const VD (&d)[M], VD (&e)[M]) {
  using F = Float<double>;
  using Fit = LossExp<T>;
  constexpr int kTerms = sizeof(Fit::kQ) / sizeof(double);
  VD shifted[M], r[M], p[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) r[i] = vmax(d[i], VD{} - 700.0);
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    shifted[i] = r[i] * 1.4426950408889634 + F::kMagic;
    const VD n = shifted[i] - F::kMagic;
    if constexpr (Fit::kSplitLn2) r[i] = (r[i] - n * F::kLn2Hi) - n * F::kLn2Lo;
    else r[i] = r[i] - n * 0.693147180559945309;
    p[i] = VD{} + Fit::kQ[kTerms - 1];
  }
#pragma GCC unroll 16
  for (int k = kTerms - 2; k >= -2; --k)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) p[i] = p[i] * r[i] + (k >= 0 ? Fit::kQ[k < 0 ? 0 : k] : 1.0);
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    const VI scale = (reinterpret_cast<VI>(shifted[i]) + F::kBias) << F::kMantissa;
    e[i] = p[i] * reinterpret_cast<VD>(scale);
    if constexpr (ToZero) e[i] = d[i] < -700.0 ? VD{} : e[i];
  }
}

// Classes whose exp are worked on together: 4 vectors in all.
template <typename T>
constexpr int kClassesTogether = kGroups<T> > 1 ? 2 : 4;

// keep(class, e) gets e = exp(x - top) of every class in kGroups<T> groups of kD columns; the sums of
// e are returned in `sum`, in the order of the classes. top: of the columns, in double.
template <typename T, bool ToZero, typename F>
inline void exp_classes(const T* x, int64_t classes, int64_t stride, const VD (&top)[kGroups<T>],
                        VD (&sum)[kGroups<T>], F keep) {
  constexpr int G = kGroups<T>;
  const auto some = [&](auto count, int64_t c) {
    constexpr int K = decltype(count)::value;
    VD d[K * G], e[K * G];
#pragma GCC unroll 8
    for (int i = 0; i < K * G; ++i)
      d[i] = load_double<T, kD>(x + (c + i / G) * stride + i % G * kD) - top[i % G];
    loss_exp<T, ToZero, K * G>(d, e);
#pragma GCC unroll 8
    for (int i = 0; i < K * G; ++i) sum[i % G] += e[i], keep(c + i / G, i % G, e[i]);
  };
  for (int g = 0; g < G; ++g) sum[g] = VD{};
  int64_t c = 0;
  for (; c + kClassesTogether<T> <= classes; c += kClassesTogether<T>)
    some(std::integral_constant<int, kClassesTogether<T>>{}, c);
  for (; c < classes; ++c) some(std::integral_constant<int, 1>{}, c);
}

// The group's half (or all) of a vector of T, as doubles.
template <typename T, int... I>
inline VD widened(Vec<T> x, int group, std::integer_sequence<int, I...>) {
  if constexpr (kGroups<T> == 1) {
    return x;
  } else {
    const Vec<T, kD> half = group == 0 ? __builtin_shufflevector(x, x, I...)
                                       : __builtin_shufflevector(x, x, (kD + I)...);
    return widen<kD>(half);
  }
}
template <typename T>
inline VD widened(Vec<T> x, int group) {
  return widened<T>(x, group, std::make_integer_sequence<int, kD>{});
}

// The largest of the classes, for kLanes<T> columns.
template <typename T>
inline void largest(const T* x, int64_t classes, int64_t stride, VD (&top)[kGroups<T>]) {
  Vec<T> most = load<T>(x);
  for (int64_t c = 1; c < classes; ++c) most = vmax(load<T>(x + c * stride), most);
#pragma GCC unroll 2
  for (int g = 0; g < kGroups<T>; ++g) top[g] = widened<T>(most, g);
}

// log sum over classes of exp(x), for kGroups<T> groups of columns; class stride in elements.
template <typename T>
inline void log_sum_exp(const T* x, int64_t classes, int64_t stride, VD (&result)[kGroups<T>]) {
  VD top[kGroups<T>], sum[kGroups<T>];
  largest<T>(x, classes, stride, top);
  exp_classes<T, false>(x, classes, stride, top, sum, [](int64_t, int, VD) {});
#pragma GCC unroll 2
  for (int g = 0; g < kGroups<T>; ++g) result[g] = top[g] + log_positive<double, kD>(sum[g]);
}

// Which class is largest (the first one among equals).
template <typename T>
inline VI argmax(const T* x, int64_t classes, int64_t stride) {
  VD top = load_double<T, kD>(x);
  VI best{};
  for (int64_t c = 1; c < classes; ++c) {
    const VD v = load_double<T, kD>(x + c * stride);
    const VI larger = v > top;
    top = larger ? v : top;
    best = larger ? VI{} + c : best;
  }
  return best;
}
// The same for kLanes<T> columns.
template <typename T>
inline IVec<T> argmax_lanes(const T* x, int64_t classes, int64_t stride) {
  Vec<T> top = load<T>(x);
  IVec<T> best{}, number{};
  for (int64_t c = 1; c < classes; ++c) {
    const Vec<T> v = load<T>(x + c * stride);
    const IVec<T> larger = v > top;
    number += 1;
    top = larger ? v : top;
    best = larger ? number : best;
  }
  return best;
}
inline VI argmax_of(const double* x, int64_t classes, int64_t stride) {
  return argmax<double>(x, classes, stride);
}

// The row of class 0 of target j, of features (outer, classes, inner) and targets (outer, inner).
inline int64_t first_class(const LossArgs& args, int64_t j) {
  return j / args.inner * args.classes * args.inner + j % args.inner;
}

inline bool is_plain(const LossArgs& args, const Targets& targets) {
  return targets.index != nullptr && args.weight == nullptr && args.label_smoothing == 0.0;
}

// Cross-entropy for class indices without weights and smoothing: log sum_c exp(x_c - x_y).
template <typename T>
inline void plain_class_losses(const LossArgs& args, const int32_t* index, int64_t cols, const T* x,
                               double* loss, double* correct) {
  constexpr int N = kLanes<T>, G = kGroups<T>;
  using I = IVec<T>;
  const int64_t stride = args.inner * cols;
  for (int64_t j = 0; j < args.outer * args.inner; ++j) {
    const T* outputs = x + first_class(args, j) * cols;
    for (int64_t start = 0; start < cols; start += N) {
      const T* column = outputs + start;
      const int32_t* wanted = index + j * cols + start;
      I y;
      if constexpr (G > 1) y = *reinterpret_cast<const typename VecOf<int32_t, N>::loose*>(wanted);
      else y = load_index(wanted);
      Vec<T> top = load<T>(column), own = y == 0 ? top : Vec<T>{};
      I number{};
      for (int64_t k = 1; k < args.classes; ++k) {
        const Vec<T> v = load<T>(column + k * stride);
        number += 1;
        top = vmax(v, top);
        own = reinterpret_cast<Vec<T>>(reinterpret_cast<I>(own) |
                                       (reinterpret_cast<I>(v) & (y == number)));
      }
      I first{};  // of the classes with the largest output
      if (correct != nullptr) first = argmax_lanes<T>(column, args.classes, stride) == y;
      VD tops[G], sum[G];
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) tops[g] = widened<T>(top, g);
      exp_classes<T, false>(column, args.classes, stride, tops, sum, [](int64_t, int, VD) {});
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const int64_t c = start + g * kD;
        const VI of = load_index(wanted + g * kD);
        VD value = log_positive<double, kD>(sum[g]) + (tops[g] - widened<T>(own, g));
        value = of < 0 ? VD{} : value;  // a column without a class counts nothing
        store<double, kD>(loss + c, j == 0 ? value : load<double, kD>(loss + c) + value);
        if (correct != nullptr) {
          const VD hit = widened<T>(first ? Vec<T>{} + T(1) : Vec<T>{}, g);
          store<double, kD>(correct + c, j == 0 ? hit : load<double, kD>(correct + c) + hit);
        }
      }
    }
  }
}

// Cross-entropy and nll for class indices: with log-probabilities l_c = x_c - shift (shift = 0 for
// nll), (1 - s) w_y (-l_y) + s/C sum_c w_c (-l_c).
template <typename T>
inline void class_losses(const LossArgs& args, const int32_t* index, int64_t cols, const T* x,
                         double* loss, double* correct) {
  const int64_t stride = args.inner * cols;
  const double smooth = args.label_smoothing;
  constexpr int kStep = kGroups<T> * kD;
  for (int64_t j = 0; j < args.outer * args.inner; ++j) {
    const T* outputs = x + first_class(args, j) * cols;
    for (int64_t start = 0; start < cols; start += kStep) {
      VD shifts[kGroups<T>] = {};
      if (args.kind == Loss::kCrossEntropy)
        log_sum_exp<T>(outputs + start, args.classes, stride, shifts);
      for (int g = 0; g < kGroups<T>; ++g) {
        const int64_t c = start + g * kD;
        const T* column = outputs + c;
        const VI y = load_index(index + j * cols + c);
        const VD shift = shifts[g];
        VD own{}, own_weight{}, all{};
        for (int64_t k = 0; k < args.classes; ++k) {
          const VD minus_l = shift - load_double<T, kD>(column + k * stride);
          const double w = args.weight != nullptr ? args.weight[k] : 1.0;
          const VI hit = y == (VI{} + k);
          own = hit ? minus_l : own;
          own_weight = hit ? splat<double, kD>(w) : own_weight;
          if (smooth != 0.0) all += w * minus_l;
        }
        // A column without a class counts nothing, whatever its outputs.
        VD value = own * own_weight;
        if (smooth != 0.0) value = (1.0 - smooth) * value + (smooth / double(args.classes)) * all;
        value = y < 0 ? VD{} : value;
        store<double, kD>(loss + c, j == 0 ? value : load<double, kD>(loss + c) + value);
        if (correct != nullptr) {
          const VI best = argmax(column, args.classes, stride);
          const VD hit = y == best ? VD{} + 1.0 : VD{};
          store<double, kD>(correct + c, j == 0 ? hit : load<double, kD>(correct + c) + hit);
        }
      }
    }
  }
}

// Cross-entropy for class probabilities t: sum_c w_c t'_c (-l_c), t' = (1 - s) t + s/C.
template <typename T>
inline void soft_losses(const LossArgs& args, const double* target, int64_t cols, const T* x,
                        double* loss, double* correct) {
  const int64_t stride = args.inner * cols;
  const double smooth = args.label_smoothing, floor = smooth / double(args.classes);
  VD shifts[kGroups<T>];
  for (int64_t j = 0; j < args.outer * args.inner; ++j) {
    const int64_t first = first_class(args, j) * cols;
    for (int64_t c = 0; c < cols; c += kD) {
      const T* column = x + first + c;
      const double* wanted = target + first + c;
      if (c % kLanes<T> == 0) log_sum_exp<T>(column, args.classes, stride, shifts);
      const VD shift = shifts[c / kD % kGroups<T>];
      VD value{};
      for (int64_t k = 0; k < args.classes; ++k) {
        const double w = args.weight != nullptr ? args.weight[k] : 1.0;
        const VD t = load<double, kD>(wanted + k * stride) * (1.0 - smooth) + floor;
        value += w * t * (shift - load_double<T, kD>(column + k * stride));
      }
      store<double, kD>(loss + c, j == 0 ? value : load<double, kD>(loss + c) + value);
      if (correct != nullptr) {
        const VI same =
            argmax(column, args.classes, stride) == argmax_of(wanted, args.classes, stride);
        const VD hit = same ? VD{} + 1.0 : VD{};
        store<double, kD>(correct + c, j == 0 ? hit : load<double, kD>(correct + c) + hit);
      }
    }
  }
}

inline VD log_of(VD x) { return log<double, kD>(x); }

// t log t - t + log(2 pi t) / 2 for t > 1: Stirling's approximation of log t!.
inline VD stirling(VD t) {
  const VD large = t > 1.0 ? t : VD{} + 1.0;
  const VD found = large * log_of(large) - large + 0.5 * log_of(6.283185307179586 * large);
  return t > 1.0 ? found : VD{};
}

// One term of the losses of an output v and a target t (kernels.h), without its weight.
inline VD term(const LossArgs& args, VD v, VD t) {
  const VD d = v - t, size = vabs(d);
  switch (args.kind) {
    case Loss::kHuber:
      return size < args.a ? 0.5 * d * d : args.a * (size - 0.5 * args.a);
    case Loss::kSmoothL1:
      return size < args.a ? 0.5 * d * d / args.a : size - 0.5 * args.a;
    case Loss::kBce: {
      const VD least = VD{} - 100.0;
      return -t * vmax(log_of(v), least) - (1.0 - t) * vmax(log_of(1.0 - v), least);
    }
    case Loss::kKlDiv: return (t == 0.0 ? VD{} : t * log_of(t)) - t * v;
    case Loss::kPoissonLog:
    case Loss::kPoisson: {
      const VD rate = args.kind == Loss::kPoissonLog ? exp<double, kD>(v) - t * v
                                                     : v - t * log_of(v + args.a);
      return args.b != 0.0 ? rate + stirling(t) : rate;
    }
    default: return VD{};
  }
}

// Its first derivative in v.
inline VD term_slope(const LossArgs& args, VD v, VD t) {
  const VD d = v - t, size = vabs(d);
  const VD sign = d > 0.0 ? VD{} + 1.0 : d < 0.0 ? VD{} - 1.0 : d;
  switch (args.kind) {
    case Loss::kHuber: return size < args.a ? d : args.a * sign;
    case Loss::kSmoothL1: return size < args.a ? d / args.a : sign;
    case Loss::kBce: {
      const VD spread = v * (1.0 - v);
      return d / vmax(spread, VD{} + 1e-12);
    }
    case Loss::kKlDiv: return -t;
    case Loss::kPoissonLog: return exp<double, kD>(v) - t;
    case Loss::kPoisson: return 1.0 - t / (v + args.a);
    default: return VD{};
  }
}

// Its second derivative in v.
inline VD term_curvature(const LossArgs& args, VD v, VD t) {
  const VD size = vabs(v - t);
  switch (args.kind) {
    case Loss::kHuber: return size < args.a ? VD{} + 1.0 : VD{};
    case Loss::kSmoothL1: return size < args.a ? VD{} + 1.0 / args.a : VD{};
    case Loss::kBce: {
      const VD spread = (v + 1e-12) * (1.0 - v + 1e-12);
      return ((v - t) * (v - t) + t * (1.0 - t)) / (spread * spread);
    }
    case Loss::kPoissonLog: return exp<double, kD>(v);
    case Loss::kPoisson: return t / ((v + args.a) * (v + args.a));
    default: return VD{};
  }
}

// Of mse and bce_with_logits, which the code below knows, or of the terms above.
inline bool has_own_terms(const LossArgs& args) { return args.kind > Loss::kBceWithLogits; }

// correct: of kBce, an output above 1/2 where the target is.
template <typename T>
inline void term_losses(const LossArgs& args, const double* target, int64_t cols, const T* x,
                        double* loss, double* correct) {
  const int64_t features = args.outer * args.classes * args.inner;
  for (int64_t c = 0; c < cols; c += kD) {
    VD sum{}, hits{};
    for (int64_t f = 0; f < features; ++f) {
      const VD v = load_double<T, kD>(x + f * cols + c);
      const VD t = load<double, kD>(target + f * cols + c);
      const VD value = term(args, v, t);
      sum += args.weight != nullptr ? args.weight[f] * value : value;
      const VI same = (v > 0.5) == (t > 0.5);
      if (args.kind == Loss::kBce) hits += same ? VD{} + 1.0 : VD{};
    }
    store<double, kD>(loss + c, sum);
    if (correct != nullptr) store<double, kD>(correct + c, hits);
  }
}

template <typename T>
inline void elementwise_losses(const LossArgs& args, const double* target, int64_t cols,
                               const T* x, double* loss, double* correct) {
  const bool mse = args.kind == Loss::kMse;
  const int64_t features = args.outer * args.classes * args.inner;
  for (int64_t c = 0; c < cols; c += kD) {
    VD sum{}, hits{};
    for (int64_t f = 0; f < features; ++f) {
      const VD v = load_double<T, kD>(x + f * cols + c);
      const VD t = load<double, kD>(target + f * cols + c);
      VD value;
      if (mse) {
        value = (v - t) * (v - t);
      } else {  // (1 - t) v + p log(1 + exp(-v)), p = 1 + (pos_weight - 1) t
        const double pos = args.pos_weight != nullptr ? args.pos_weight[f] : 1.0;
        value = (1.0 - t) * v + (1.0 + (pos - 1.0) * t) * softplus<double, kD>(-v);
        const VI same = (v > 0) == (t > 0.5);
        hits += same ? VD{} + 1.0 : VD{};
      }
      sum += args.weight != nullptr ? args.weight[f] * value : value;
    }
    store<double, kD>(loss + c, sum);
    if (correct != nullptr) store<double, kD>(correct + c, hits);
  }
}

template <typename T>
void loss(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
          double* loss, double* correct) {
  if (args.kind == Loss::kCrossEntropy && is_plain(args, targets))
    plain_class_losses(args, targets.index, cols, outputs, loss, correct);
  else if (targets.index != nullptr)
    class_losses(args, targets.index, cols, outputs, loss, correct);
  else if (args.kind == Loss::kCrossEntropy)
    soft_losses(args, targets.dense, cols, outputs, loss, correct);
  else if (has_own_terms(args))
    term_losses(args, targets.dense, cols, outputs, loss, correct);
  else
    elementwise_losses(args, targets.dense, cols, outputs, loss, correct);
}

template <typename T>
inline void store_narrow(T* p, VD v) {
  store<T, kD>(p, narrow<T, kD>(v));
}

// Cross-entropy and nll are sum_k a_k (-l_k) with constant coefficients a of kD columns:
// (1 - s) w_y [k = y] + s/C w_k for class indices (zero in a column that does not count),
// w_k ((1 - s) t_k + s/C) for class probabilities t.
struct Coefficients {
  const LossArgs& args;
  const double* dense;  // at the columns, or null
  VI index{};
  int64_t stride;
  // dense from element `at` on, index at element `own`.
  Coefficients(const LossArgs& a, const Targets& targets, int64_t at, int64_t step, int64_t own)
      : args(a), dense(targets.dense != nullptr ? targets.dense + at : nullptr), stride(step) {
    if (targets.index != nullptr) index = load_index(targets.index + own);
  }
  VD operator()(int64_t k) const {
    const double smooth = args.label_smoothing, floor = smooth / double(args.classes);
    const double w = args.weight != nullptr ? args.weight[k] : 1.0;
    if (dense != nullptr)
      return w * (load<double, kD>(dense + k * stride) * (1.0 - smooth) + floor);
    const VD own = index == (VI{} + k) ? splat<double, kD>(w * (1.0 - smooth)) : VD{};
    return index < 0 ? VD{} : own + w * floor;
  }
  VD sum() const {
    VD total{};
    for (int64_t k = 0; k < args.classes; ++k) total += (*this)(k);
    return total;
  }
};

// The softmax of the classes in kLanes<T> columns, kD at a time.
template <typename T>
class Chances {
 public:
  Chances(const T* x, int64_t classes, int64_t stride) : x_(x), stride_(stride) {
    VD sum[G];
    largest<T>(x, classes, stride, top_);
    exp_classes<T, true>(x, classes, stride, top_, sum, [&](int64_t k, int g, VD e) {
      if (k < kKept) store<double, kD>(kept_ + (k * G + g) * kD, e);
    });
    for (int g = 0; g < G; ++g) share_[g] = 1.0 / sum[g];
  }
  VD operator()(int64_t k, int g) const {
    if (k < kKept) return load<double, kD>(kept_ + (k * G + g) * kD) * share_[g];
    const VD d[1] = {load_double<T, kD>(x_ + k * stride_ + g * kD) - top_[g]};
    VD e[1];
    loss_exp<T, true, 1>(d, e);
    return e[0] * share_[g];
  }

 private:
  static constexpr int G = kGroups<T>;
  static constexpr int64_t kKept = 64;  // classes whose exp are not computed again
  const T* x_;
  const int64_t stride_;
  VD top_[G], share_[G];
  alignas(64) double kept_[kKept * G * kD];
};

// f(at, own, stride, group, chances) for kD columns at a time: of a group in kLanes<T> columns from
// element `at` of the outputs and `own` of class indices on.
template <typename T, typename F>
inline void each_class_column(const LossArgs& args, int64_t cols, const T* outputs, F f) {
  const int64_t stride = args.inner * cols;
  for (int64_t j = 0; j < args.outer * args.inner; ++j)
    for (int64_t c = 0; c < cols; c += kLanes<T>) {
      const int64_t at = first_class(args, j) * cols + c;
      const Chances<T> chances(outputs + at, args.classes, stride);
      for (int g = 0; g < kGroups<T>; ++g)
        f(at + g * kD, j * cols + c + g * kD, stride, g, chances);
    }
}

// f(at, weight, positive) for kD columns of one feature at a time.
template <typename F>
inline void each_element(const LossArgs& args, int64_t cols, F f) {
  for (int64_t row = 0; row < args.outer * args.classes * args.inner; ++row) {
    const double w = args.weight != nullptr ? args.weight[row] : 1.0;
    const double pos = args.pos_weight != nullptr ? args.pos_weight[row] : 1.0;
    for (int64_t c = 0; c < cols; c += kD) f(row * cols + c, w, pos);
  }
}

// Cross-entropy: (sum a) p - a. nll: -a. mse: 2 w (v - t).
// bce: w ((1 - t) - q sigmoid(-v)), q = 1 + (pos_weight - 1) t.
template <typename T>
void loss_gradient(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
                   T* gradient) {
  if (has_own_terms(args)) {
    each_element(args, cols, [&](int64_t at, double w, double) {
      const VD v = load_double<T, kD>(outputs + at), t = load<double, kD>(targets.dense + at);
      store_narrow(gradient + at, w * term_slope(args, v, t));
    });
    return;
  }
  if (args.kind == Loss::kMse || args.kind == Loss::kBceWithLogits) {
    each_element(args, cols, [&](int64_t at, double w, double pos) {
      const VD v = load_double<T, kD>(outputs + at), t = load<double, kD>(targets.dense + at);
      const VD slope = args.kind == Loss::kMse
                           ? 2.0 * (v - t)
                           : (1.0 - t) - (1.0 + (pos - 1.0) * t) * sigmoid<double, kD>(-v);
      store_narrow(gradient + at, w * slope);
    });
    return;
  }
  if (args.kind == Loss::kNll) {
    const int64_t stride = args.inner * cols;
    for (int64_t j = 0; j < args.outer * args.inner; ++j)
      for (int64_t c = 0; c < cols; c += kD) {
        const int64_t at = first_class(args, j) * cols + c;
        const Coefficients a(args, targets, at, stride, j * cols + c);
        for (int64_t k = 0; k < args.classes; ++k)
          store_narrow(gradient + at + k * stride, -a(k));
      }
    return;
  }
  const bool plain = is_plain(args, targets);
  each_class_column<T>(args, cols, outputs, [&](int64_t at, int64_t own, int64_t stride, int g,
                                                const Chances<T>& chances) {
    if (plain) {
      const VI of = load_index(targets.index + own);
      for (int64_t k = 0; k < args.classes; ++k) {
        const VD d = chances(k, g) - (of == (VI{} + k) ? VD{} + 1.0 : VD{});
        store_narrow(gradient + at + k * stride, of < 0 ? VD{} : d);
      }
      return;
    }
    const Coefficients a(args, targets, at, stride, own);
    const VD sum = a.sum();
    for (int64_t k = 0; k < args.classes; ++k)
      store_narrow(gradient + at + k * stride,
                   sum == 0.0 ? VD{} : sum * chances(k, g) - a(k));
  });
}

// Cross-entropy: (sum a) p (r - sum p r). nll: 0. mse: 2 w r. bce: w q sigmoid(v) sigmoid(-v) r.
template <typename T>
void loss_hvp(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
              const T* tangent, T* product) {
  if (has_own_terms(args)) {
    each_element(args, cols, [&](int64_t at, double w, double) {
      const VD v = load_double<T, kD>(outputs + at), t = load<double, kD>(targets.dense + at);
      const VD r = load_double<T, kD>(tangent + at);
      store_narrow(product + at, w * term_curvature(args, v, t) * r);
    });
    return;
  }
  if (args.kind == Loss::kMse || args.kind == Loss::kBceWithLogits) {
    each_element(args, cols, [&](int64_t at, double w, double pos) {
      const VD r = load_double<T, kD>(tangent + at);
      if (args.kind == Loss::kMse) return store_narrow(product + at, 2.0 * w * r);
      const VD v = load_double<T, kD>(outputs + at), t = load<double, kD>(targets.dense + at);
      const VD slope = sigmoid<double, kD>(v) * sigmoid<double, kD>(-v);
      store_narrow(product + at, w * (1.0 + (pos - 1.0) * t) * slope * r);
    });
    return;
  }
  if (args.kind == Loss::kNll) {
    const int64_t count = args.outer * args.classes * args.inner * cols;
    for (int64_t i = 0; i < count; i += kD) store_narrow(product + i, VD{});
    return;
  }
  const bool plain = is_plain(args, targets);
  each_class_column<T>(args, cols, outputs, [&](int64_t at, int64_t own, int64_t stride, int g,
                                                const Chances<T>& chances) {
    const VD sum = plain ? (load_index(targets.index + own) < 0 ? VD{} : VD{} + 1.0)
                         : Coefficients(args, targets, at, stride, own).sum();
    VD mean{};
    for (int64_t k = 0; k < args.classes; ++k)
      mean += chances(k, g) * load_double<T, kD>(tangent + at + k * stride);
    for (int64_t k = 0; k < args.classes; ++k) {
      const int64_t i = at + k * stride;
      const VD d = sum * chances(k, g) * (load_double<T, kD>(tangent + i) - mean);
      store_narrow(product + i, sum == 0.0 ? VD{} : d);
    }
  });
}

}  // namespace
}  // namespace pylandscape::cpu
