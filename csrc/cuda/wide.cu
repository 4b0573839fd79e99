// What torch's matrix products of many points leave to do (resident.h).
#include "cuda/elementary.cuh"
#include "cuda/launch.h"
#include "cuda/losses.cuh"
#include "cuda/resident.h"

namespace pylandscape::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // of a multiprocessor at least: up to 128 registers
constexpr int kPoints = 16;  // points of one block: terms are read once for so many

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

// Thread: one element of kPoints points. kMoves directions are held in registers; 0 stands for any
// number, read again for every point.
template <typename T, int kMoves>
__global__ void __launch_bounds__(kThreads, kBlocks)
    combine_elements(const __grid_constant__ CombineArgs<T> a) {
  const int64_t count = a.rows * a.m, e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= count) return;
  const int64_t column = e % a.m, first = int64_t{blockIdx.y} * kPoints;
  const int64_t last = first + kPoints < a.g ? first + kPoints : a.g;
  const T start = a.terms[e];
  T held[kMoves > 0 ? kMoves : 1];
#pragma unroll
  for (int j = 0; j < kMoves; ++j) held[j] = a.terms[(1 + j) * count + e];
  with_unary<T>(a.function, a.a, a.b, [&](auto f) {
    for (int64_t point = first; point < last; ++point) {
      T sum = start;
      const T* c = a.c + point * a.k;
      if constexpr (kMoves > 0) {
#pragma unroll
        for (int j = 0; j < kMoves; ++j) sum += c[j] * held[j];
      } else {
        for (int64_t j = 0; j < a.k; ++j) sum += c[j] * a.terms[(1 + j) * count + e];
      }
      if (a.bias != nullptr) sum += a.bias[point * a.m + column];
      a.out[point * count + e] = f(sum);
    }
  });
}

// Warp: 32 samples of point blockIdx.y.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    output_terms(const __grid_constant__ OutputLossArgs<T> a) {
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x, point = blockIdx.y;
  const DeviceTargets targets{a.index, a.dense, a.samples};
  Terms sum;
  if (own < a.count) {
    const T* x = a.outputs + (point * a.count + own) * a.features;
    sum = column_terms(a.loss, targets, a.first + own, a.hits, [=](int64_t f) { return x[f]; });
  }
  sum = warp_sum(sum);
  if (own >= a.count || own % resident::kWarp != 0) return;
  double* to = a.parts + 2 * (point * a.total + (a.first + own) / resident::kWarp);
  to[0] = sum.loss, to[1] = sum.hits;
}

}  // namespace

template <typename T>
cudaError_t combine_terms(const CombineArgs<T>& args, cudaStream_t stream) {
  if (args.g == 0 || args.rows * args.m == 0) return cudaSuccess;
  const auto kernel = args.k == 1   ? &combine_elements<T, 1>
                      : args.k == 2 ? &combine_elements<T, 2>
                      : args.k == 3 ? &combine_elements<T, 3>
                                    : &combine_elements<T, 0>;
  launch(kernel, dim3(blocks(args.rows * args.m, kThreads), blocks(args.g, kPoints)), kThreads, 0,
         stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t output_losses(const OutputLossArgs<T>& args, cudaStream_t stream) {
  if (args.g == 0 || args.count == 0) return cudaSuccess;
  launch(&output_terms<T>, dim3(blocks(args.count, kThreads), static_cast<unsigned>(args.g)),
         kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t combine_terms(const CombineArgs<float>&, cudaStream_t);
template cudaError_t combine_terms(const CombineArgs<double>&, cudaStream_t);
template cudaError_t output_losses(const OutputLossArgs<float>&, cudaStream_t);
template cudaError_t output_losses(const OutputLossArgs<double>&, cudaStream_t);

}  // namespace pylandscape::cuda
