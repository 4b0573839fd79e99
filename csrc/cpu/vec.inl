// Vectors of this instruction set (GCC/Clang vector extensions). Included by kernels.inl and draw.inl.
#include <utility>

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
template <typename V>
inline V vmax(V x, V y) {  // NaN in x stays
  return x < y ? y : x;
}

// N doubles from N elements of T.
template <typename T, int N>
inline Vec<double, N> load_double(const T* p) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return load<double, N>(p);
  } else {
    return __builtin_convertvector((load<T, N>(p)), Vec<double, N>);
  }
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
