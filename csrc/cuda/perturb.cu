// Many perturbed copies of theta at once. Compiled with --fmad=false: the CPU's bits.
#include <type_traits>

#include "cuda/directions.h"
#include "cuda/launch.h"
#include "cuda/shape.h"

namespace pylandscape::cuda {
namespace {

constexpr int kPoints = 32;  // points of one block: theta and d are read once for so many

// kWidth neighbouring elements, moved in one access.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T x[kWidth];
};

// Thread: kWidth elements of the block's points. kCount directions are held in registers; 0 stands
// for any number of them, read again for every point.
template <typename T, int kWidth, int kCount>
__global__ void __launch_bounds__(kBlockThreads)
    perturb_points(int64_t g, int64_t k, int64_t n, const T* __restrict__ theta,
                   const double* __restrict__ c, const T* __restrict__ d, T* __restrict__ out) {
  using Wide = Pack<T, kWidth>;
  const int64_t i = (int64_t{blockIdx.x} * kBlockThreads + threadIdx.x) * kWidth;
  if (i >= n) return;
  const auto at = [&](const T* p) { return *reinterpret_cast<const Wide*>(p + i); };
  const Wide base = at(theta);
  Wide held[kCount > 0 ? kCount : 1];
#pragma unroll
  for (int j = 0; j < kCount; ++j) held[j] = at(d + j * n);
  const int64_t first = int64_t{blockIdx.y} * kPoints;
  const int64_t last = first + kPoints < g ? first + kPoints : g;
  for (int64_t point = first; point < last; ++point) {
    Wide x = base;
    const auto add = [&](int64_t j, const Wide& direction) {
      const T factor = static_cast<T>(c[point * k + j]);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) x.x[w] += factor * direction.x[w];
    };
    if constexpr (kCount > 0) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) add(j, held[j]);
    } else {
      for (int64_t j = 0; j < k; ++j) add(j, at(d + j * n));
    }
    *reinterpret_cast<Wide*>(out + point * n + i) = x;
  }
}

template <typename T, int kWidth>
void launch_points(int64_t g, int64_t k, int64_t n, const T* theta, const double* c, const T* d,
                   T* out, cudaStream_t stream) {
  const int64_t elements = int64_t{kBlockThreads} * kWidth;
  const dim3 grid(static_cast<unsigned>((n + elements - 1) / elements),
                  static_cast<unsigned>((g + kPoints - 1) / kPoints));
  const auto kernel = k == 1   ? &perturb_points<T, kWidth, 1>
                      : k == 2 ? &perturb_points<T, kWidth, 2>
                      : k == 3 ? &perturb_points<T, kWidth, 3>
                               : &perturb_points<T, kWidth, 0>;
  launch(kernel, grid, kBlockThreads, 0, stream, g, k, n, theta, c, d, out);
}

}  // namespace

template <typename T>
cudaError_t perturb(int64_t g, int64_t k, int64_t n, const T* theta, const double* c, const T* d,
                    T* out, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  constexpr int64_t kMostPoints = int64_t{65535} * kPoints;  // gridDim.y
  const auto aligned = [](const T* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool wide = n % kWide == 0 && aligned(theta) && aligned(d) && aligned(out);
  for (int64_t first = 0; first < g && n > 0; first += kMostPoints) {
    const int64_t count = g - first < kMostPoints ? g - first : kMostPoints;
    const auto run = wide ? &launch_points<T, kWide> : &launch_points<T, 1>;
    run(count, k, n, theta, c + first * k, d, out + first * n, stream);
  }
  return cudaGetLastError();
}

template cudaError_t perturb(int64_t, int64_t, int64_t, const float*, const double*, const float*,
                             float*, cudaStream_t);
template cudaError_t perturb(int64_t, int64_t, int64_t, const double*, const double*, const double*,
                             double*, cudaStream_t);

}  // namespace pylandscape::cuda
