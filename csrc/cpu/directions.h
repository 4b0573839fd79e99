// Kernels of directions: the Gaussian draw and the sums and products of normalisation. The same
// bits in every instruction set: sums have sixteen lanes whatever the vector length, and the files
// are compiled without contraction of a*b+c.
#pragma once
#include <cstdint>

namespace pylandscape::cpu {

template <typename T>
struct DirectionKernels {
  // out (n,) = standard normal numbers first .. first + n - 1 of (seed, stream), drawn in float32.
  // `soon` (n,) or null is fetched into the cache on the way: the caller reads it next.
  void (*draw)(uint64_t seed, uint64_t stream, int64_t first, int64_t n, T* out, const T* soon);
  // sums[0] = |d|^2, sums[1] = |theta|^2 over n elements, in double.
  void (*squares)(int64_t n, const T* d, const T* theta, double* sums);
  // out (n,) = factor * d; in place allowed.
  void (*scale)(int64_t n, T factor, const T* d, T* out);
  // out (n,) = theta * d, elementwise; in place allowed.
  void (*multiply)(int64_t n, const T* d, const T* theta, T* out);
  // out (n,) = theta + sum_j c[j] d[j * stride .. + n], j = 0 .. k-1 in order.
  void (*perturb)(int64_t n, int64_t k, int64_t stride, const T* theta, const T* c, const T* d,
                  T* out);
  // The same, where nobody reads out soon: it goes past the cache.
  void (*perturb_past)(int64_t n, int64_t k, int64_t stride, const T* theta, const T* c, const T* d,
                       T* out);
};

template <typename T>
const DirectionKernels<T>& direction_kernels();

namespace baseline {
extern const DirectionKernels<float> directions_f32;
extern const DirectionKernels<double> directions_f64;
}  // namespace baseline
namespace avx2 {
extern const DirectionKernels<float> directions_f32;
extern const DirectionKernels<double> directions_f64;
}  // namespace avx2
namespace avx512 {
extern const DirectionKernels<float> directions_f32;
extern const DirectionKernels<double> directions_f64;
}  // namespace avx512

}  // namespace pylandscape::cpu
