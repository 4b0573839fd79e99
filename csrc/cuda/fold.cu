// Weights of convolutions at many points, with batch norm folded in. Compiled with --fmad=false: the
// CPU's bits (program/ops/norm_affine.h).
#include "cuda/launch.h"
#include "cuda/layers.h"

namespace pylandscape::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPoints = 16;  // points of one block: theta and d are read once for so many

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

// Element i of a parameter at a point.
template <typename T>
__device__ T parameter(const FoldArgs<T>& a, int64_t point, int64_t source, int64_t i) {
  if (source < 0) return a.constants[-1 - source + i];
  const int64_t at = source + i;
  T x = a.theta[(a.one_theta ? 0 : point * a.n) + at];
  for (int64_t j = 0; j < a.k; ++j) x += static_cast<T>(a.c[point * a.k + j]) * a.d[j * a.n + at];
  return x;
}

// Thread: one row of one point.
template <typename T>
__global__ void __launch_bounds__(kThreads) fold_norms(const __grid_constant__ FoldArgs<T> a) {
  const int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= a.g * a.rows) return;
  const int64_t point = e / a.rows, row = e % a.rows;
  const auto value = [&](int64_t source, T otherwise) {
    return source == kNowhere ? otherwise : parameter(a, point, source, row);
  };
  const T bias = value(a.bias, T(0));
  T scale = T(1), shift = bias;
  if (a.mean != kNowhere) {
    const double wide = double(value(a.gain, T(1))) / sqrt(double(value(a.variance, T(1))) + a.eps);
    const double at = double(bias) - double(value(a.mean, T(0)));
    scale = static_cast<T>(wide);
    shift = static_cast<T>(at * wide + double(value(a.shift, T(0))));
  }
  a.affine[e] = scale, a.affine[a.g * a.rows + e] = shift;
}

// Thread: one weight of kPoints points. kCount directions are held in registers; 0 stands for any
// number, read again for every point, and for thetas of their own.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) fold_weights(const __grid_constant__ FoldArgs<T> a) {
  const int64_t row_size = a.taps * a.channels, size = a.rows * row_size;
  const int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= size) return;
  const int64_t row = e / row_size, tap = e % row_size / a.channels, channel = e % a.channels;
  const int64_t from = (row * a.channels + channel) * a.taps + tap;
  const int64_t first = int64_t{blockIdx.y} * kPoints;
  const int64_t last = first + kPoints < a.g ? first + kPoints : a.g;
  T base = T(0), held[kCount > 0 ? kCount : 1];
  if constexpr (kCount > 0) {
    base = a.theta[a.weight + from];
#pragma unroll
    for (int j = 0; j < kCount; ++j) held[j] = a.d[j * a.n + a.weight + from];
  }
  for (int64_t point = first; point < last; ++point) {
    T x;
    if constexpr (kCount > 0) {
      x = base;
#pragma unroll
      for (int j = 0; j < kCount; ++j) x += static_cast<T>(a.c[point * kCount + j]) * held[j];
    } else {
      x = parameter(a, point, a.weight, from);
    }
    const T scale = a.affine != nullptr ? a.affine[point * a.rows + row] : T(1);
    a.out[point * size + e] = x * scale;
  }
}

}  // namespace

template <typename T>
cudaError_t fold(const FoldArgs<T>& args, cudaStream_t stream) {
  constexpr int64_t kMostPoints = int64_t{65535} * kPoints;  // gridDim.y
  const int64_t size = args.rows * args.channels * args.taps;
  if (args.affine != nullptr && args.g * args.rows > 0)
    launch(&fold_norms<T>, blocks(args.g * args.rows, kThreads), kThreads, 0, stream, args);
  const bool shared = args.one_theta && args.weight >= 0;
  const auto kernel = shared && args.k == 1   ? &fold_weights<T, 1>
                      : shared && args.k == 2 ? &fold_weights<T, 2>
                      : shared && args.k == 3 ? &fold_weights<T, 3>
                                              : &fold_weights<T, 0>;
  for (int64_t first = 0; args.out != nullptr && size > 0 && first < args.g; first += kMostPoints) {
    FoldArgs<T> part = args;
    part.g = args.g - first < kMostPoints ? args.g - first : kMostPoints;
    part.c += first * args.k, part.out += first * size;
    if (!args.one_theta) part.theta += first * args.n;
    if (args.affine != nullptr) part.affine += first * args.rows;
    launch(kernel, dim3(blocks(size, kThreads), blocks(part.g, kPoints)), kThreads, 0, stream,
           part);
  }
  return cudaGetLastError();
}

template cudaError_t fold(const FoldArgs<float>&, cudaStream_t);
template cudaError_t fold(const FoldArgs<double>&, cudaStream_t);

}  // namespace pylandscape::cuda
