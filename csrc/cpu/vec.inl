// Vectors of this instruction set (GCC/Clang vector extensions). Included by kernels.inl and draw.inl.
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// A call in the middle of a loop would take its constants out of the registers.
#define PL_INLINE inline __attribute__((always_inline))

namespace pylandscape::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
  typedef T loose __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T>
struct IntOf;
template <>
struct IntOf<float> { using type = int32_t; };
template <>
struct IntOf<double> { using type = int64_t; };

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <typename T, int N = kLanes<T>>
using Vec = typename VecOf<T, N>::type;
template <typename T, int N = kLanes<T>>
using IVec = typename VecOf<typename IntOf<T>::type, N>::type;

template <typename T, int N = kLanes<T>>
inline Vec<T, N> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T, N>::loose*>(p);
}
template <typename T, int N>
inline void store(T* p, typename VecOf<T, N>::type v) {
  *reinterpret_cast<typename VecOf<T, N>::loose*>(p) = v;
}
template <typename T, int N = kLanes<T>>
inline Vec<T, N> splat(T x) {
  return x - Vec<T, N>{};
}
// max and min as one instruction each, which GCC does not find where NaN matters: NaN in x stays.
#if defined(__AVX512F__)
inline __m512 most_of(__m512 y, __m512 x) { return _mm512_maskz_max_ps(0xffff, y, x); }
inline __m512d most_of(__m512d y, __m512d x) { return _mm512_maskz_max_pd(0xff, y, x); }
inline __m512 least_of(__m512 y, __m512 x) { return _mm512_maskz_min_ps(0xffff, y, x); }
inline __m512d least_of(__m512d y, __m512d x) { return _mm512_maskz_min_pd(0xff, y, x); }
#endif
#if defined(__AVX2__)
inline __m256 most_of(__m256 y, __m256 x) { return _mm256_max_ps(y, x); }
inline __m256d most_of(__m256d y, __m256d x) { return _mm256_max_pd(y, x); }
inline __m256 least_of(__m256 y, __m256 x) { return _mm256_min_ps(y, x); }
inline __m256d least_of(__m256d y, __m256d x) { return _mm256_min_pd(y, x); }
#endif
template <typename V>
inline V most_of(V y, V x) { return x < y ? y : x; }
template <typename V>
inline V least_of(V y, V x) { return x > y ? y : x; }

template <typename V>
inline V vmax(V x, V y) {
  return most_of(y, x);
}
template <typename V, typename X>
inline V vmin(V x, X most) {
  return least_of(V{} + most, x);
}

// Conversions, lane by lane. GCC takes the builtin apart where one instruction would do. With masks of
// ones, as GCC warns of the others.
template <int N>
inline Vec<double, N> widen(Vec<float, N> x) {
#if defined(__AVX512F__)
  if constexpr (N == 8) return _mm512_maskz_cvtps_pd(0xff, reinterpret_cast<__m256>(x));
#endif
#if defined(__AVX2__)
  if constexpr (N == 4) return _mm256_cvtps_pd(reinterpret_cast<__m128>(x));
#endif
  return __builtin_convertvector(x, Vec<double, N>);
}
template <int N>
inline Vec<double, N> widen(Vec<double, N> x) {
  return x;
}
template <typename T, int N>
inline Vec<T, N> narrow(Vec<double, N> x) {
  if constexpr (sizeof(T) == sizeof(double)) return x;
#if defined(__AVX512F__)
  else if constexpr (N == 8) return reinterpret_cast<Vec<T, N>>(_mm512_maskz_cvtpd_ps(0xff, x));
#endif
#if defined(__AVX2__)
  else if constexpr (N == 4) return reinterpret_cast<Vec<T, N>>(_mm256_cvtpd_ps(x));
#endif
  else return __builtin_convertvector(x, Vec<T, N>);
}

// N doubles from N elements of T.
template <typename T, int N>
inline Vec<double, N> load_double(const T* p) {
  if constexpr (sizeof(T) == sizeof(double)) return load<T, N>(p);
  else return widen<N>(load<T, N>(p));
}

// Halves of two vectors, interleaved.
template <typename T, int... I>
inline void interleave(Vec<T>& x, Vec<T>& y, std::integer_sequence<int, I...>) {
  constexpr int N = kLanes<T>;
  const Vec<T> low = __builtin_shufflevector(x, y, (I / 2 + I % 2 * N)...);
  y = __builtin_shufflevector(x, y, (N / 2 + I / 2 + I % 2 * N)...);
  x = low;
}

// The transpose of N vectors: log2(N) times, vector i is interleaved with vector i + N/2.
template <typename T>
inline void transpose(Vec<T> (&x)[kLanes<T>]) {
  constexpr int N = kLanes<T>;
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
    Vec<T> y[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      y[2 * i] = x[i], y[2 * i + 1] = x[i + N / 2];
      interleave<T>(y[2 * i], y[2 * i + 1], std::make_integer_sequence<int, N>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = y[i];
  }
}

}  // namespace
}  // namespace pylandscape::cpu
