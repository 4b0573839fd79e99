// What products of derivatives leave to do, element by element (products.h).
#include <algorithm>

#include "cuda/elementary.cuh"
#include "cuda/launch.h"
#include "cuda/losses.cuh"
#include "cuda/products.h"

namespace pylandscape::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;    // of a multiprocessor at least: up to 128 registers
constexpr int kVectors = 4;   // of one thread, which reads what they share once
constexpr int kLanes = 32;    // columns of a block of row sums, and at most as many rows at a time
constexpr int64_t kRowsOfPart = 2048;
constexpr int64_t kMostParts = 65535;  // of a grid in y

unsigned blocks(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

__device__ inline int64_t place_of(const Place& p, int64_t e) {
  const int64_t r = e / p.width, c = e % p.width;
  return c == p.columns ? p.bias_at + r : p.at + r * p.row_step + c * p.column_step;
}

// Of at most kMostParts parts.
__host__ __device__ inline int64_t rows_of_part(int64_t rows) {
  const int64_t least = (rows + kMostParts - 1) / kMostParts;
  return least > kRowsOfPart ? least : kRowsOfPart;
}

// Block: 32 columns of one part of the rows of one vector.
template <typename T>
__global__ void __launch_bounds__(kLanes* kLanes, 1)
    sum_rows(const __grid_constant__ RowSumArgs<T> a, int64_t parts) {
  __shared__ double sums[kLanes][kLanes + 1];
  const int64_t c = int64_t{blockIdx.x} * kLanes + threadIdx.x;
  const int64_t part = blockIdx.y, vector = blockIdx.z;
  const int64_t begin = parts > 1 ? part * rows_of_part(a.rows) : 0;
  const int64_t stop = parts > 1 ? begin + rows_of_part(a.rows) : a.rows;
  const int64_t end = stop < a.rows ? stop : a.rows;
  double sum = 0;
  if (c < a.columns) {
    const T* x = a.x + vector * a.rows * a.columns + c;
    for (int64_t r = begin + threadIdx.y; r < end; r += blockDim.y) sum += double(x[r * a.columns]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= a.columns) return;
  for (unsigned lane = 1; lane < blockDim.y; ++lane) sum += sums[lane][threadIdx.x];
  if (parts > 1) a.parts[(vector * parts + part) * a.columns + c] = sum;
  else a.out[vector * a.out_step + place_of(a.place, c)] += sum;
}

// Thread: one element of kVectors vectors.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    bend_elements(const __grid_constant__ BendArgs<T> a) {
  const int64_t count = a.rows * a.columns, e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= count) return;
  const int64_t begin = int64_t{blockIdx.y} * kVectors;
  const int64_t end = begin + kVectors < a.g ? begin + kVectors : a.g;
  const T first = a.bend.first[e];
  const T curved = a.bend.curved != nullptr ? a.bend.curved[e] : T(0);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t own = j * count + e;
    T t = a.x[own];
    if (a.bias != nullptr) t += a.bias[j * a.bias_step + e % a.columns], a.x[own] = t;
    T bent = a.bend.positive ? (first > T(0) ? t : T(0)) : first * t;
    if (a.bend.curved != nullptr) bent += curved * a.bend.r[own];
    a.bent[own] = bent;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    slope_elements(const __grid_constant__ SlopeArgs<T> a) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  with_unary_derivatives<T>(a.function, a.a, a.b, [&](auto f) {
    for (int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x; e < a.count; e += step) {
      T first, second;
      f(a.x[e], first, second);
      const T dy = a.dy[e];
      a.first[e] = first, a.curved[e] = second * dy, a.dx[e] = first * dy;
    }
  });
}

// Thread: one element of the result.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    scatter_elements(const __grid_constant__ ScatterArgs<T> a) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x; e < a.rows * a.columns;
       e += step) {
    const T* x = a.x + e / a.columns * a.width;
    const int64_t i = e % a.columns;
    T sum = T(0);
    for (int32_t q = a.start[i]; q < a.start[i + 1]; ++q) sum += x[a.list[q]];
    a.out[e] = sum;
  }
}

// The constant coefficients of cross-entropy and nll, sum_k a_k (-l_k), of one target
// (cpu/losses.inl).
struct Coefficients {
  const cpu::LossArgs& loss;
  const double* dense;  // of class 0, or null
  int32_t index;
  int64_t stride;
  __device__ double operator()(int64_t k) const {
    const double smooth = loss.label_smoothing, floor = smooth / double(loss.classes);
    const double w = loss.weight != nullptr ? loss.weight[k] : 1.0;
    if (dense != nullptr) return w * (dense[k * stride] * (1.0 - smooth) + floor);
    if (index < 0) return 0.0;
    return (k == index ? w * (1.0 - smooth) : 0.0) + w * floor;
  }
  __device__ double sum() const {
    double total = 0;
    for (int64_t k = 0; k < loss.classes; ++k) total += (*this)(k);
    return total;
  }
};

// One column of classes: cross-entropy (sum a) p - a, nll -a; times r: (sum a) p (r - sum p r), 0.
template <typename T>
__device__ void class_slopes(const cpu::LossArgs& loss, const Coefficients& a, const T* x,
                             const T* r, T* out) {
  const int64_t classes = loss.classes, step = loss.inner;
  const double sum = a.sum();
  const bool soft = loss.kind == cpu::Loss::kCrossEntropy && sum != 0.0;
  if (!soft) {
    for (int64_t k = 0; k < classes; ++k)
      out[k * step] = r != nullptr || sum == 0.0 ? T(0) : static_cast<T>(-a(k));
    return;
  }
  const double shift = log_sum_exp(classes, [=](int64_t k) { return x[k * step]; });
  const auto p = [=](int64_t k) { return exp(double(x[k * step]) - shift); };
  if (r == nullptr) {
    for (int64_t k = 0; k < classes; ++k) out[k * step] = static_cast<T>(sum * p(k) - a(k));
    return;
  }
  double mean = 0;
  for (int64_t k = 0; k < classes; ++k) mean += p(k) * double(r[k * step]);
  for (int64_t k = 0; k < classes; ++k)
    out[k * step] = static_cast<T>(sum * p(k) * (double(r[k * step]) - mean));
}

// One output: mse 2 w (v - t), bce w ((1 - t) - q sigmoid(-v)), q = 1 + (pos_weight - 1) t; times
// r: 2 w r, w q sigmoid(v) sigmoid(-v) r.
__device__ inline double element_slope(const cpu::LossArgs& loss, int64_t f, double t, double v,
                                       bool along, double r) {
  const double w = loss.weight != nullptr ? loss.weight[f] : 1.0;
  if (loss.kind == cpu::Loss::kMse) return 2.0 * w * (along ? r : v - t);
  if (loss.kind != cpu::Loss::kBceWithLogits)
    return w * (along ? term_curvature(loss, v, t) * r : term_slope(loss, v, t));
  const double pos = loss.pos_weight != nullptr ? loss.pos_weight[f] : 1.0;
  const double q = 1.0 + (pos - 1.0) * t;
  if (along) return w * q * sigmoid(v) * sigmoid(-v) * r;
  return w * ((1.0 - t) - q * sigmoid(-v));
}

// Thread: one sample of one vector.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    output_slopes(const __grid_constant__ LossSlopeArgs<T> a) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= a.rows) return;
  const int64_t at = (blockIdx.y * a.rows + row) * a.features, s = a.first + row;
  T* out = a.out + at;
  const T* r = a.tangents != nullptr ? a.tangents + at : nullptr;
  const T* x = a.outputs + row * a.features;
  if (row >= a.count) {  // weighs nothing
    for (int64_t f = 0; f < a.features; ++f) out[f] = T(0);
    return;
  }
  if (a.slopes != nullptr) {
    const T* u = a.slopes + row * a.features;
    double dot = 0;
    for (int64_t f = 0; f < a.features; ++f) dot += double(u[f]) * double(r[f]);
    const T scale = static_cast<T>(dot);
    for (int64_t f = 0; f < a.features; ++f) out[f] = scale * u[f];
    return;
  }
  const cpu::LossArgs& loss = a.loss;
  if (elementwise(loss)) {
    for (int64_t f = 0; f < a.features; ++f)
      out[f] = static_cast<T>(element_slope(loss, f, a.dense[f * a.samples + s], double(x[f]),
                                            r != nullptr, r != nullptr ? double(r[f]) : 0.0));
    return;
  }
  for (int64_t j = 0; j < loss.outer * loss.inner; ++j) {
    const int64_t first = j / loss.inner * loss.classes * loss.inner + j % loss.inner;
    const Coefficients coefficients{
        loss, a.dense != nullptr ? a.dense + first * a.samples + s : nullptr,
        a.index != nullptr ? a.index[j * a.samples + s] : 0, loss.inner * a.samples};
    class_slopes(loss, coefficients, x + first, r != nullptr ? r + first : nullptr, out + first);
  }
}

constexpr int64_t kMost = 1 << 20;  // blocks of a loop over elements; each then takes several

unsigned looping(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>(kMost, (count + kThreads - 1) / kThreads));
}

}  // namespace

int64_t row_parts(int64_t rows) {
  return rows > 0 ? (rows + rows_of_part(rows) - 1) / rows_of_part(rows) : 1;
}

template <typename T>
cudaError_t add_row_sums(const RowSumArgs<T>& args, cudaStream_t stream) {
  if (args.g == 0 || args.rows == 0 || args.columns == 0) return cudaSuccess;
  const int64_t parts = args.parts != nullptr ? row_parts(args.rows) : 1;
  unsigned lanes = 1;
  while (lanes < kLanes && lanes < args.rows) lanes *= 2;
  launch(&sum_rows<T>,
         dim3(blocks(args.columns, kLanes), static_cast<unsigned>(parts),
              static_cast<unsigned>(args.g)),
         dim3(kLanes, lanes), 0, stream, args, parts);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || parts == 1) return error;
  RowSumArgs<double> rest{};
  rest.g = args.g, rest.rows = parts, rest.columns = args.columns, rest.x = args.parts;
  rest.place = args.place, rest.out = args.out, rest.out_step = args.out_step;
  return add_row_sums(rest, stream);
}

template <typename T>
cudaError_t bend(const BendArgs<T>& args, cudaStream_t stream) {
  if (args.g == 0 || args.rows * args.columns == 0) return cudaSuccess;
  launch(&bend_elements<T>,
         dim3(blocks(args.rows * args.columns, kThreads), blocks(args.g, kVectors)), kThreads, 0,
         stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t unary_slopes(const SlopeArgs<T>& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  launch(&slope_elements<T>, looping(args.count), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t scatter_sums(const ScatterArgs<T>& args, cudaStream_t stream) {
  if (args.rows * args.columns == 0) return cudaSuccess;
  launch(&scatter_elements<T>, looping(args.rows * args.columns), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t loss_slopes(const LossSlopeArgs<T>& args, cudaStream_t stream) {
  if (args.g == 0 || args.rows == 0) return cudaSuccess;
  launch(&output_slopes<T>, dim3(blocks(args.rows, kThreads), static_cast<unsigned>(args.g)),
         kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t add_row_sums(const RowSumArgs<float>&, cudaStream_t);
template cudaError_t add_row_sums(const RowSumArgs<double>&, cudaStream_t);
template cudaError_t bend(const BendArgs<float>&, cudaStream_t);
template cudaError_t bend(const BendArgs<double>&, cudaStream_t);
template cudaError_t unary_slopes(const SlopeArgs<float>&, cudaStream_t);
template cudaError_t unary_slopes(const SlopeArgs<double>&, cudaStream_t);
template cudaError_t scatter_sums(const ScatterArgs<float>&, cudaStream_t);
template cudaError_t scatter_sums(const ScatterArgs<double>&, cudaStream_t);
template cudaError_t loss_slopes(const LossSlopeArgs<float>&, cudaStream_t);
template cudaError_t loss_slopes(const LossSlopeArgs<double>&, cudaStream_t);

}  // namespace pylandscape::cuda
