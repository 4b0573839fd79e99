// Vectors of this instruction set (GCC/Clang vector extensions). Included by kernels.inl and draw.inl.
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

}  // namespace
}  // namespace pylandscape::cpu
