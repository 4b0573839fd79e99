// Launchers of what torch's convolutions and products leave to do: weights before them, and what
// comes after or between them. Pointers are device memory; work is put on `stream` and not waited
// for.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>

#include "cpu/kernels.h"

namespace pylandscape::cuda {

// Where a parameter is: an offset in theta, -1 - offset in the constants, or nowhere.
constexpr int64_t kNowhere = std::numeric_limits<int64_t>::min();

// The weights of a convolution at g points, with the batch norm after it folded in.
//
// A parameter of point i is theta (at i, or the only one) + sum_j c[i, j] d[j], in the order of j.
//   affine (2, g, rows): scale = gain / sqrt(variance + eps), shift = (bias - mean) scale + shift,
//     in double, rounded once; without mean and variance 1 and the bias
//   out (g, rows, taps, channels): weight (rows, channels, taps) times scale
// Either may be null. `out` reads the scales from `affine`; without it they are 1.
template <typename T>
struct FoldArgs {
  int64_t g, k, n, rows, channels, taps;
  bool one_theta;
  const T* theta;      // (1 or g, n)
  const double* c;     // (g, k)
  const T* d;          // (k, n)
  const T* constants;
  int64_t weight, bias, gain, shift, mean, variance;
  double eps;
  T *affine, *out;
};
template <typename T>
cudaError_t fold(const FoldArgs<T>& args, cudaStream_t stream);

// out (g, rows, m) = f(x * scale + bias + add): x and add (rows, m), scale and bias (m,) of each
// point, or of all where the step from one point to the next is 0. scale, bias and add may be null;
// out may be x, or add, where these are of each point.
template <typename T>
struct EpilogueArgs {
  int64_t g, rows, m;
  const T *x, *scale, *bias, *add;
  int64_t x_step, scale_step, bias_step, add_step;
  cpu::Unary function;
  double a, b;
  T* out;
};
template <typename T>
cudaError_t epilogue(const EpilogueArgs<T>& args, cudaStream_t stream);

// y (rows, outputs, channels) of x (rows, pixels, channels): cpu::PoolArgs with its arrays in device
// memory. NaN in a window is its maximum.
template <typename T>
struct WindowArgs {
  int64_t rows, pixels, outputs, channels;
  cpu::Pool mode;
  const int64_t *bounds, *index;
  const double* factor;  // (outputs,), or (taps,) where per_tap; or null
  bool per_tap;
  const T* x;
  T* y;
};
template <typename T>
cudaError_t pool_windows(const WindowArgs<T>& args, cudaStream_t stream);

// One step of a recurrent cell (cpu::Cell) in each of `rows` rows: x and h (rows, gates * hidden),
// state the `hidden` elements from state + row * state_step on, y (rows, 2 hidden) of an LSTM, else
// (rows, hidden).
template <typename T>
struct CellArgs {
  int64_t rows, hidden, state_step;
  cpu::Cell kind;
  const T *x, *h, *state;
  T* y;
};
template <typename T>
cudaError_t recurrent_cell(const CellArgs<T>& args, cudaStream_t stream);

}  // namespace pylandscape::cuda
