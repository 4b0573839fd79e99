// Launchers of derivatives: the block Hessian-vector product between, and where they are small
// instead of, torch's matrix products. Pointers are device memory; work is put on `stream` and not
// waited for.
//
// Values at theta are (rows, features), tangents and their adjoints (g, rows, features) for g
// vectors. The result of a vector depends on its own numbers and shapes alone: not on g, nor on its
// place among them. Sums over rows are taken in double, in a fixed order.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/limits.h"
#include "cpu/kernels.h"

namespace pylandscape::cuda {

// Element (j, i, s) of g matrices (count, inner): x[j batch + i outer + s inner_step]. Beyond
// `count` there may be one row of ones.
template <typename T>
struct Operand {
  const T* x;
  int64_t batch, outer, inner_step, count;
  bool ones;
};

// bent = slope t + curved r: the epilogue of a product t with a unary function at its other end.
template <typename T>
struct Bend {
  const T* first;   // (rows, columns): slopes; or, if positive, values whose slope is (first > 0)
  bool positive;
  const T* curved;  // (rows, columns) or null
  const T* r;       // (g, rows, columns), beside `curved`
};

// t (g, rows, columns) = sum over one or two pairs of a (., rows, inner) b (., inner, columns),
// plus bias; summed over `inner` in T, in order.
template <typename T>
struct PairArgs {
  int64_t g, rows, columns;
  int pairs;
  int64_t inner[2];
  Operand<T> a[2], b[2];  // outer: rows; columns
  const T* bias;          // (g, columns) with rows bias_step apart, or null
  int64_t bias_step;
  Bend<T> bend;
  T *out, *bent;  // (g, rows, columns) each, either may be null
};
template <typename T>
cudaError_t pair_products(const PairArgs<T>& args, cudaStream_t stream);

// Where element (r, c) of a matrix of sums goes in a row of the result. Column `columns`, if there
// is one, is a bias.
struct Place {
  int64_t at, row_step, column_step, columns, width, bias_at;  // width: columns, with the bias
};

// out (g, .) double, rows out_step apart, += sum over samples of one or two pairs of
// a (., rows, samples) b (., samples, columns); with a bias, its sum of a[0] alone. In T over at
// most kSumRun samples, in double beyond. parts: (g, splits, rows, width) double, if splits > 1.
template <typename T>
struct SumArgs {
  int64_t g, rows, columns, samples, splits;
  int pairs;
  Operand<T> a[2], b[2];
  Place place;
  double *out, *parts;
  int64_t out_step;
};
// How many parts the samples are divided into; from shapes alone.
int64_t sum_splits(int64_t rows, int64_t columns, int64_t samples);
template <typename T>
cudaError_t pair_sums(const SumArgs<T>& args, cudaStream_t stream);

// out (g, .) double, rows out_step apart, += sums over rows of x (g, rows, columns).
// parts: (g, row_parts(rows), columns) double, if these are more than one.
template <typename T>
struct RowSumArgs {
  int64_t g, rows, columns;
  const T* x;
  Place place;
  double *out, *parts;
  int64_t out_step;
};
int64_t row_parts(int64_t rows);
template <typename T>
cudaError_t add_row_sums(const RowSumArgs<T>& args, cudaStream_t stream);

// x (g, rows, columns) += bias, if there is one; bent as above.
template <typename T>
struct BendArgs {
  int64_t g, rows, columns;
  T* x;
  const T* bias;
  int64_t bias_step;
  Bend<T> bend;
  T* bent;
};
template <typename T>
cudaError_t bend(const BendArgs<T>& args, cudaStream_t stream);

// Of y = f(x) with adjoint dy, (count,) each: first = f'(x), curved = f''(x) dy, dx = f'(x) dy.
template <typename T>
struct SlopeArgs {
  int64_t count;
  const T *x, *dy;
  cpu::Unary function;
  double a, b;
  T *first, *curved, *dx;
};
template <typename T>
cudaError_t unary_slopes(const SlopeArgs<T>& args, cudaStream_t stream);

// out (g, rows, columns)[., ., i] = sum of x (g, rows, width)[., ., list[q]] over
// start[i] <= q < start[i + 1], in this order.
template <typename T>
struct ScatterArgs {
  int64_t rows, columns, width;  // rows: of all g
  const T* x;
  const int32_t *start, *list;  // (columns + 1,), (width,)
  T* out;
};
template <typename T>
cudaError_t scatter_sums(const ScatterArgs<T>& args, cudaStream_t stream);

// Derivatives of the loss terms in the outputs (rows, features) of the samples first .. first +
// count - 1; the rows beyond count get zeros. Targets as in resident.h, (target rows, samples).
// tangents null: out (rows, features) = the gradient. Else out (g, rows, features): the Hessian
// times each tangent, or, with slopes (rows, features), slopes (slopes . tangent).
template <typename T>
struct LossSlopeArgs {
  int64_t g, first, count, rows, samples, features;
  cpu::LossArgs loss;
  const int32_t* index;
  const double* dense;
  const T *outputs, *slopes, *tangents;
  T* out;
};
template <typename T>
cudaError_t loss_slopes(const LossSlopeArgs<T>& args, cudaStream_t stream);

// Softmax over (outer, size, inner) of each row; y: the values (rows, features).
//   dy null                tangents:   ry from rx = in
//   ry null                reverse:    dx from dy (g, .) = in
//   both                   second:     rdx from rdy = in, with dy (rows, .) and ry (g, .)
template <typename T>
struct SoftmaxSlopeArgs {
  int64_t g, rows;
  cpu::SoftmaxArgs shape;
  bool tangent;
  const T *y, *in, *dy, *ry;
  T* out;
};
template <typename T>
cudaError_t softmax_slopes(const SoftmaxSlopeArgs<T>& args, cudaStream_t stream);

// Layer norm and group norm of each row (cpu::NormArgs); x: its input (rows, features).
//   tangent   ry from rx = in (or null), rgain and rshift (g, gains), gain_step apart (or null)
//   reverse   dx from dy (g, .) = in
//   second    rdx from rdy = in, with dy (rows, .), rx (g, .) and rgain, either of which may be null
// terms (g, rows, features), if not null: what sums to the gain's gradient.
enum class NormPass : int { kTangent, kReverse, kSecond };
template <typename T>
struct NormSlopeArgs {
  int64_t g, rows;
  cpu::NormArgs shape;
  NormPass pass;
  const T *x, *in, *dy, *rx, *gain, *rgain, *rshift;
  int64_t gain_step;
  T *out, *terms;
};
template <typename T>
cudaError_t norm_slopes(const NormSlopeArgs<T>& args, cudaStream_t stream);

// Windows of pixels (cpu::PoolArgs), linear around theta. Of a maximum, at theta: win (rows, outputs,
// channels) is the position in `index` of the first tap that reaches it, share = 1 / how many do
// (kMaxEven alone, else null). Tangents (g, rows, pixels, channels) to (g, rows, outputs, channels);
// reverse the other way, by lists of the positions list[start[p]] .. list[start[p + 1] - 1] of `index`
// that hold pixel p, and the window of each position.
template <typename T>
struct PoolSlopeArgs {
  int64_t g, rows, pixels, outputs, channels;
  cpu::Pool mode;
  const int64_t *bounds, *index;
  const double* factor;                  // (outputs,) of a sum, or (taps,) where per_tap; or null
  bool per_tap;
  const int32_t *start, *list, *window;  // of a reverse pass
  const T* x;                            // of a maximum: (rows, pixels, channels) at theta
  int32_t* win;
  T* share;
  const T* in;
  T* out;
};
template <typename T>
cudaError_t pool_winners(const PoolSlopeArgs<T>& args, cudaStream_t stream);
template <typename T>
cudaError_t pool_tangent(const PoolSlopeArgs<T>& args, cudaStream_t stream);
template <typename T>
cudaError_t pool_reverse(const PoolSlopeArgs<T>& args, cudaStream_t stream);

}  // namespace pylandscape::cuda
