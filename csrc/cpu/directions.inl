// Compiled once per instruction set, without contraction; contracts in directions.h.
#include "cpu/directions.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "cpu/draw.inl"

namespace pylandscape::cpu {
namespace {

constexpr int kSumLanes = 16;  // fixed, so that sums do not depend on the instruction set

template <typename T>
void squares(int64_t n, const T* d, const T* theta, double* sums) {
  constexpr int N = kLanes<double>, kVectors = kSumLanes / N;
  Vec<double> a[kVectors] = {}, b[kVectors] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const auto x = load_double<T, N>(d + i + v * N), y = load_double<T, N>(theta + i + v * N);
      a[v] += x * x;
      b[v] += y * y;
    }
  double lanes[2][kSumLanes];
  for (int l = 0; l < kSumLanes; ++l) lanes[0][l] = a[l / N][l % N], lanes[1][l] = b[l / N][l % N];
  for (int l = 0; i < n; ++i, ++l)
    lanes[0][l] += double(d[i]) * double(d[i]), lanes[1][l] += double(theta[i]) * double(theta[i]);
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l)
      lanes[0][l] += lanes[0][l + half], lanes[1][l] += lanes[1][l + half];
  sums[0] = lanes[0][0], sums[1] = lanes[1][0];
}

// A store past the cache: the line is not read first. p is aligned to the vector.
template <typename T>
inline void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_stream_ps(p, (__m512)v);
  else _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4) _mm256_stream_ps(p, (__m256)v);
  else _mm256_stream_pd(p, (__m256d)v);
#else
  store<T, kLanes<T>>(p, v);
#endif
}

// Results that nobody reads soon go past the cache, in place they stay in it.
template <typename T>
void scale(int64_t n, T factor, const T* d, T* out) {
  constexpr int N = kLanes<T>;
  int64_t i = 0;
  if (d != out) {
    for (; i < n && reinterpret_cast<uintptr_t>(out + i) % sizeof(Vec<T>) != 0; ++i)
      out[i] = factor * d[i];
    for (; i + N <= n; i += N) stream(out + i, factor * load<T, N>(d + i));
#if defined(__AVX__)
    _mm_sfence();  // before other threads are told that the work is done
#endif
  }
  for (; i + N <= n; i += N) store<T, N>(out + i, factor * load<T, N>(d + i));
  for (; i < n; ++i) out[i] = factor * d[i];
}

template <typename T>
void multiply(int64_t n, const T* d, const T* theta, T* out) {
  constexpr int N = kLanes<T>;
  int64_t i = 0;
  for (; i + N <= n; i += N) store<T, N>(out + i, load<T, N>(d + i) * load<T, N>(theta + i));
  for (; i < n; ++i) out[i] = d[i] * theta[i];
}

template <typename T, bool kPast>
void perturb(int64_t n, int64_t k, int64_t stride, const T* theta, const T* c, const T* d, T* out) {
  constexpr int N = kLanes<T>;
  int64_t i = 0;
  const auto one = [&] {
    T x = theta[i];
    for (int64_t j = 0; j < k; ++j) x += c[j] * d[j * stride + i];
    out[i++] = x;
  };
  if constexpr (kPast)
    while (i < n && reinterpret_cast<uintptr_t>(out + i) % sizeof(Vec<T>) != 0) one();
  for (; i + N <= n; i += N) {
    auto x = load<T, N>(theta + i);
    for (int64_t j = 0; j < k; ++j) x += c[j] * load<T, N>(d + j * stride + i);
    if constexpr (kPast) stream(out + i, x);
    else store<T, N>(out + i, x);
  }
#if defined(__AVX__)
  if constexpr (kPast) _mm_sfence();  // before other threads are told that the work is done
#endif
  while (i < n) one();
}

}  // namespace

namespace PL_ISA_NS {
const DirectionKernels<float> directions_f32{&draw<float>, &squares<float>, &scale<float>,
                                             &multiply<float>, &perturb<float, false>,
                                             &perturb<float, true>};
const DirectionKernels<double> directions_f64{&draw<double>, &squares<double>, &scale<double>,
                                              &multiply<double>, &perturb<double, false>,
                                              &perturb<double, true>};
}  // namespace PL_ISA_NS

}  // namespace pylandscape::cpu
