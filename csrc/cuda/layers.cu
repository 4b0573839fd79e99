// What stands between convolutions and products (layers.h).
#include "cuda/layers.h"

#include "cuda/elementary.cuh"
#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;             // of a multiprocessor at least: up to 128 registers
constexpr int kPacks = 4;              // of a thread in an epilogue, about
constexpr int64_t kMostPoints = 65535;  // gridDim.y
constexpr int64_t kMostElements = int64_t{1} << 30;  // of a launch that counts in 32 bits
constexpr int64_t kSumBlock = 16;      // taps summed before they join the total, as on the CPU

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

int64_t common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

// kWidth neighbouring elements, moved in one access.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T x[kWidth];
};

// Thread: packs of point blockIdx.y, always in the same columns: the grid's width is a multiple of m.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_packs(const __grid_constant__ EpilogueArgs<T> a) {
  using Wide = Pack<T, kWidth>;
  const int64_t all = a.rows * a.m, step = int64_t{gridDim.x} * kThreads * kWidth;
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (begin >= all) return;
  const int64_t point = blockIdx.y, column = begin % a.m;
  const auto at = [](const T* p) { return *reinterpret_cast<const Wide*>(p); };
  Wide scale, bias;
#pragma unroll
  for (int w = 0; w < kWidth; ++w) scale.x[w] = T(1), bias.x[w] = T(0);
  if (a.scale != nullptr) scale = at(a.scale + point * a.scale_step + column);
  if (a.bias != nullptr) bias = at(a.bias + point * a.bias_step + column);
  const T* x = a.x + point * a.x_step;
  const T* add = a.add != nullptr ? a.add + point * a.add_step : nullptr;
  T* out = a.out + point * all;
  with_unary<T>(a.function, a.a, a.b, [&](auto f) {
    for (int64_t e = begin; e < all; e += step) {
      Wide v = at(x + e);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) v.x[w] = v.x[w] * scale.x[w] + bias.x[w];
      if (add != nullptr) {
        const Wide more = at(add + e);
#pragma unroll
        for (int w = 0; w < kWidth; ++w) v.x[w] += more.x[w];
      }
#pragma unroll
      for (int w = 0; w < kWidth; ++w) v.x[w] = f(v.x[w]);
      *reinterpret_cast<Wide*>(out + e) = v;
    }
  });
}

template <typename T>
__device__ T weighted_sum(const WindowArgs<T>& a, const T* x, int64_t first, int64_t last) {
  T sum = T(0);
  for (int64_t i = first; i < last; ++i)
    sum += x[a.index[i] * a.channels] * static_cast<T>(a.factor[i]);
  return sum;
}

template <typename T>
__device__ T window_sum(const WindowArgs<T>& a, const T* x, int64_t first, int64_t last) {
  T total = T(0);
  for (int64_t from = first; from < last; from += kSumBlock) {
    const int64_t to = from + kSumBlock < last ? from + kSumBlock : last;
    T part = x[a.index[from] * a.channels];
    for (int64_t i = from + 1; i < to; ++i) part += x[a.index[i] * a.channels];
    total += part;
  }
  return total;
}

// Thread: one output.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    take_windows(const __grid_constant__ WindowArgs<T> a) {
  const unsigned e = blockIdx.x * kThreads + threadIdx.x;
  const unsigned channels = static_cast<unsigned>(a.channels);
  const unsigned outputs = static_cast<unsigned>(a.outputs);
  if (e >= static_cast<unsigned>(a.rows) * outputs * channels) return;
  const unsigned pixel = e / channels, channel = e - pixel * channels;
  const unsigned row = pixel / outputs, output = pixel - row * outputs;
  const T* x = a.x + int64_t{row} * a.pixels * a.channels + channel;
  const int64_t first = a.bounds[output], last = a.bounds[output + 1];
  T found;
  if (a.mode == cpu::Pool::kSum) {
    const bool weighted = a.factor != nullptr && a.per_tap;
    found = weighted ? weighted_sum(a, x, first, last) : window_sum(a, x, first, last);
    if (a.factor != nullptr && !weighted) found *= static_cast<T>(a.factor[output]);
  } else {
    found = x[a.index[first] * a.channels];
    for (int64_t i = first + 1; i < last; ++i) {
      const T v = x[a.index[i] * a.channels];
      found = v > found || v != v ? v : found;
    }
  }
  a.y[e] = found;
}

// Thread: one unit of one row.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    step_cells(const __grid_constant__ CellArgs<T> a) {
  const unsigned e = blockIdx.x * kThreads + threadIdx.x;
  const unsigned hidden = static_cast<unsigned>(a.hidden);
  if (e >= static_cast<unsigned>(a.rows) * hidden) return;
  const unsigned row = e / hidden, unit = e - row * hidden;
  const int64_t gates = a.kind == cpu::Cell::kLstm ? 4 : 3;
  const T* x = a.x + int64_t{row} * gates * a.hidden + unit;
  const T* h = a.h + int64_t{row} * gates * a.hidden + unit;
  const auto sum = [&](int gate) { return x[gate * a.hidden] + h[gate * a.hidden]; };
  const T state = a.state[int64_t{row} * a.state_step + unit];
  if (a.kind == cpu::Cell::kLstm) {
    const T c = sigmoid(sum(1)) * state + sigmoid(sum(0)) * tanh(sum(2));
    T* y = a.y + int64_t{row} * 2 * a.hidden + unit;
    y[0] = sigmoid(sum(3)) * tanh(c), y[a.hidden] = c;
  } else {
    const T n = tanh(x[2 * a.hidden] + sigmoid(sum(0)) * h[2 * a.hidden]);
    a.y[int64_t{row} * a.hidden + unit] = n + sigmoid(sum(1)) * (state - n);
  }
}

template <typename T, int kWidth>
void launch_epilogue(const EpilogueArgs<T>& args, cudaStream_t stream) {
  const int64_t packs = args.rows * args.m / kWidth, each = int64_t{kThreads} * kWidth;
  const int64_t period = args.m / common_divisor(args.m, each);  // blocks
  const int64_t wanted = (packs + kThreads * kPacks - 1) / (kThreads * kPacks);
  // Where there are fewer than that, one pack a thread: none has another column then.
  const int64_t most = (packs + kThreads - 1) / kThreads;
  const int64_t even = (wanted + period - 1) / period * period, width = even < most ? even : most;
  launch(&finish_packs<T, kWidth>,
         dim3(static_cast<unsigned>(width), static_cast<unsigned>(args.g)), kThreads, 0, stream,
         args);
}

}  // namespace

template <typename T>
cudaError_t epilogue(const EpilogueArgs<T>& args, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const int64_t size = args.rows * args.m;
  if (args.g == 0 || size == 0) return cudaSuccess;
  const auto aligned = [](const T* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool wide = args.m % kWide == 0 && aligned(args.x) && aligned(args.out) &&
                    aligned(args.scale) && aligned(args.bias) && aligned(args.add);
  for (int64_t first = 0; first < args.g; first += kMostPoints) {
    EpilogueArgs<T> part = args;
    part.g = args.g - first < kMostPoints ? args.g - first : kMostPoints;
    part.x += first * args.x_step, part.out += first * size;
    if (args.scale != nullptr) part.scale += first * args.scale_step;
    if (args.bias != nullptr) part.bias += first * args.bias_step;
    if (args.add != nullptr) part.add += first * args.add_step;
    (wide ? &launch_epilogue<T, kWide> : &launch_epilogue<T, 1>)(part, stream);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t pool_windows(const WindowArgs<T>& args, cudaStream_t stream) {
  const int64_t each = args.outputs * args.channels;
  if (args.rows == 0 || each == 0) return cudaSuccess;
  if (each > kMostElements) return cudaErrorInvalidValue;
  const int64_t step = kMostElements / each;
  for (int64_t first = 0; first < args.rows; first += step) {
    WindowArgs<T> part = args;
    part.rows = args.rows - first < step ? args.rows - first : step;
    part.x += first * args.pixels * args.channels, part.y += first * each;
    launch(&take_windows<T>, blocks(part.rows * each, kThreads), kThreads, 0, stream, part);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t recurrent_cell(const CellArgs<T>& args, cudaStream_t stream) {
  if (args.rows == 0 || args.hidden == 0) return cudaSuccess;
  if (args.hidden > kMostElements) return cudaErrorInvalidValue;
  const int64_t step = kMostElements / args.hidden;
  const int64_t gates = cpu::cell_gates(args.kind) * args.hidden;
  const int64_t out = args.kind == cpu::Cell::kLstm ? 2 * args.hidden : args.hidden;
  for (int64_t first = 0; first < args.rows; first += step) {
    CellArgs<T> part = args;
    part.rows = args.rows - first < step ? args.rows - first : step;
    part.x += first * gates, part.h += first * gates;
    part.state += first * args.state_step, part.y += first * out;
    launch(&step_cells<T>, blocks(part.rows * args.hidden, kThreads), kThreads, 0, stream, part);
  }
  return cudaGetLastError();
}

#define PL_LAYERS(T)                                                  \
  template cudaError_t epilogue(const EpilogueArgs<T>&, cudaStream_t); \
  template cudaError_t pool_windows(const WindowArgs<T>&, cudaStream_t); \
  template cudaError_t recurrent_cell(const CellArgs<T>&, cudaStream_t);
PL_LAYERS(float)
PL_LAYERS(double)
#undef PL_LAYERS

}  // namespace pylandscape::cuda
