// Derivatives of pooling (products.h): a thread takes one element of the result, and adds in the
// order of the lists.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/products.h"

namespace pylandscape::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMost = 1 << 20;  // blocks; each then takes several elements a thread

// f(row of all g, place, channel, element) for the elements of (count, places, channels).
template <typename F>
__device__ void each_place(int64_t count, int64_t places, int64_t channels, F f) {
  const int64_t step = int64_t{gridDim.x} * kThreads, all = count * places * channels;
  for (int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x; e < all; e += step)
    f(e / channels / places, e / channels % places, e % channels, e);
}

unsigned blocks(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>(kMost, (count + kThreads - 1) / kThreads));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    find_winners(const __grid_constant__ PoolSlopeArgs<T> a) {
  each_place(a.rows, a.outputs, a.channels, [&](int64_t row, int64_t o, int64_t c, int64_t e) {
    const T* x = a.x + row * a.pixels * a.channels + c;
    const int64_t first = a.bounds[o], last = a.bounds[o + 1];
    int64_t win = first;
    T best = x[a.index[first] * a.channels];
    for (int64_t q = first + 1; q < last; ++q) {  // the first of equal values stays, NaN wins
      const T v = x[a.index[q] * a.channels];
      if (v > best || v != v) best = v, win = q;
    }
    a.win[e] = static_cast<int32_t>(win);
    if (a.share == nullptr) return;
    T ties = T(0);
    for (int64_t q = first; q < last; ++q) ties += x[a.index[q] * a.channels] == best ? T(1) : T(0);
    a.share[e] = T(1) / ties;
  });
}

// What tap q, a pixel's value x, of output e at theta has of its derivative.
template <typename T>
__device__ T weight_of(const PoolSlopeArgs<T>& a, const T* x, int64_t q, int64_t e) {
  const int32_t win = a.win[e];
  if (a.share == nullptr) return q == win ? T(1) : T(0);
  return x[a.index[q] * a.channels] == x[a.index[win] * a.channels] ? a.share[e] : T(0);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    tangent_windows(const __grid_constant__ PoolSlopeArgs<T> a) {
  each_place(a.g * a.rows, a.outputs, a.channels,
             [&](int64_t row, int64_t o, int64_t c, int64_t e) {
    const int64_t own = row % a.rows;
    const T* x = a.x + own * a.pixels * a.channels + c;
    const T* in = a.in + row * a.pixels * a.channels + c;
    const int64_t at = (own * a.outputs + o) * a.channels + c;
    if (a.share == nullptr) {
      a.out[e] = in[a.index[a.win[at]] * a.channels];
      return;
    }
    T sum = T(0);
    for (int64_t q = a.bounds[o]; q < a.bounds[o + 1]; ++q)
      sum += weight_of(a, x, q, at) * in[a.index[q] * a.channels];
    a.out[e] = sum;
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    reverse_windows(const __grid_constant__ PoolSlopeArgs<T> a) {
  each_place(a.g * a.rows, a.pixels, a.channels, [&](int64_t row, int64_t p, int64_t c, int64_t e) {
    const int64_t own = row % a.rows;
    const T* x = a.x + own * a.pixels * a.channels + c;
    const T* in = a.in + row * a.outputs * a.channels + c;
    T sum = T(0);
    for (int32_t i = a.start[p]; i < a.start[p + 1]; ++i) {
      const int64_t q = a.list[i], o = a.window[q];
      const T d = in[o * a.channels];
      if (a.mode == cpu::Pool::kSum)
        sum += a.factor != nullptr ? d * static_cast<T>(a.factor[a.per_tap ? q : o]) : d;
      else
        sum += weight_of(a, x, q, (own * a.outputs + o) * a.channels + c) * d;
    }
    a.out[e] = sum;
  });
}

}  // namespace

template <typename T>
cudaError_t pool_winners(const PoolSlopeArgs<T>& args, cudaStream_t stream) {
  const int64_t count = args.rows * args.outputs * args.channels;
  if (count == 0) return cudaSuccess;
  launch(&find_winners<T>, blocks(count), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t pool_tangent(const PoolSlopeArgs<T>& args, cudaStream_t stream) {
  const int64_t count = args.g * args.rows * args.outputs * args.channels;
  if (count == 0) return cudaSuccess;
  launch(&tangent_windows<T>, blocks(count), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t pool_reverse(const PoolSlopeArgs<T>& args, cudaStream_t stream) {
  const int64_t count = args.g * args.rows * args.pixels * args.channels;
  if (count == 0) return cudaSuccess;
  launch(&reverse_windows<T>, blocks(count), kThreads, 0, stream, args);
  return cudaGetLastError();
}

#define PL_POOL(T)                                                        \
  template cudaError_t pool_winners(const PoolSlopeArgs<T>&, cudaStream_t); \
  template cudaError_t pool_tangent(const PoolSlopeArgs<T>&, cudaStream_t); \
  template cudaError_t pool_reverse(const PoolSlopeArgs<T>&, cudaStream_t);
PL_POOL(float)
PL_POOL(double)
#undef PL_POOL

}  // namespace pylandscape::cuda
