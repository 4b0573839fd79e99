// Products of two or four small matrices, and their sums over samples (products.h). A block owns a
// tile of the result, a thread 4 x 4 of its elements; what is multiplied passes through shared
// memory a few inner indices at a time, the next ones on their way in registers meanwhile.
#include "cuda/products.h"

#include <algorithm>

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;    // rows and columns of a thread
template <typename T>
constexpr int kStep = sizeof(T) == 4 ? 16 : 8;  // inner indices at a time
constexpr int kSquare = 64, kTall = 128, kSlim = 32;  // tiles of 64 x 64, or of 128 x 32
constexpr int64_t kLeastSamples = 256;  // of a split
constexpr int64_t kEnoughBlocks = 256;  // splits stop here: about two for each multiprocessor
static_assert(kSquare * kSquare == kThreads * kEach * kEach && kTall * kSlim == kThreads * kEach * kEach);
static_assert(kSumRun % kStep<float> == 0 && kLeastSamples % kSumRun == 0);

int64_t blocks(int64_t count, int64_t each) { return (count + each - 1) / each; }

// kSize outer by kStep inner indices of an operand, on their way to shared memory.
template <typename T, int kSize>
class Panel {
 public:
  static constexpr int kDepth = kStep<T>, kCount = kSize * kDepth / kThreads;
  using Shared = T[kDepth][kSize + kEach];  // rows start at different banks, aligned

  __device__ Panel(const Operand<T>& from, int64_t batch, int64_t first)
      : from_(from), x_(from.x + batch * from.batch), first_(first) {}

  // Inner indices begin .. end - 1; beyond them zero. The faster index in memory is that of
  // neighbouring threads.
  __device__ void load(int64_t begin, int64_t end) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int64_t i = begin + inner(n), o = first_ + outer(n);
      T value = T(0);
      if (i < end) {
        if (o < from_.count) value = x_[o * from_.outer + i * from_.inner_step];
        else if (o == from_.count && from_.ones) value = T(1);
      }
      held_[n] = value;
    }
  }
  __device__ void store(Shared& to) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) to[inner(n)][outer(n)] = held_[n];
  }

 private:
  __device__ bool along() const { return from_.inner_step == 1; }
  __device__ int inner(int n) const {
    const int e = n * kThreads + threadIdx.x;
    return along() ? e % kDepth : e / kSize;
  }
  __device__ int outer(int n) const {
    const int e = n * kThreads + threadIdx.x;
    return along() ? e / kDepth : e % kSize;
  }

  const Operand<T>& from_;
  const T* x_;
  int64_t first_;
  T held_[kCount];
};

template <typename T>
struct Tile {
  T x[kEach][kEach];
};

// acc += a b over begin <= inner < end; every kSumRun inner indices `flush` is called, if kFlush.
template <typename T, int kRows, int kColumns, bool kFlush, typename Flush>
__device__ void multiply(const Operand<T>& left, const Operand<T>& right, int64_t batch,
                         int64_t row, int64_t column, int64_t begin, int64_t end, Tile<T>& acc,
                         Flush flush) {
  constexpr int kDepth = kStep<T>;
  __shared__ T as[kDepth][kRows + kEach], bs[kDepth][kColumns + kEach];
  const int r = threadIdx.x / (kColumns / kEach) * kEach;
  const int c = threadIdx.x % (kColumns / kEach) * kEach;
  Panel<T, kRows> a(left, batch, row);
  Panel<T, kColumns> b(right, batch, column);
  a.load(begin, end), b.load(begin, end);
  for (int64_t at = begin; at < end; at += kDepth) {
    a.store(as), b.store(bs);
    __syncthreads();
    if (at + kDepth < end) a.load(at + kDepth, end), b.load(at + kDepth, end);
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      T x[kEach], y[kEach];
#pragma unroll
      for (int n = 0; n < kEach; ++n) x[n] = as[i][r + n], y[n] = bs[i][c + n];
#pragma unroll
      for (int n = 0; n < kEach; ++n)
#pragma unroll
        for (int m = 0; m < kEach; ++m) acc.x[n][m] += x[n] * y[m];
    }
    __syncthreads();
    if constexpr (kFlush)
      if ((at - begin) % kSumRun == kSumRun - kDepth) flush();
  }
}

// f(row, column, n, m) for the elements of this thread's tile that are inside.
template <int kColumns, typename F>
__device__ void each_element(int64_t row, int64_t column, int64_t rows, int64_t columns, F f) {
  const int64_t r = row + threadIdx.x / (kColumns / kEach) * kEach;
  const int64_t c = column + threadIdx.x % (kColumns / kEach) * kEach;
#pragma unroll
  for (int n = 0; n < kEach; ++n)
#pragma unroll
    for (int m = 0; m < kEach; ++m)
      if (r + n < rows && c + m < columns) f(r + n, c + m, n, m);
}

// Block: (row tile and column tile, ., vector).
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads, 2)
    product_tiles(const __grid_constant__ PairArgs<T> a) {
  const int64_t across = (a.columns + kColumns - 1) / kColumns, vector = blockIdx.y;
  const int64_t row = blockIdx.x / across * kRows, column = blockIdx.x % across * kColumns;
  Tile<T> acc{};
  for (int p = 0; p < a.pairs; ++p)
    multiply<T, kRows, kColumns, false>(a.a[p], a.b[p], vector, row, column, 0, a.inner[p], acc,
                                        [] {});
  each_element<kColumns>(row, column, a.rows, a.columns, [&](int64_t r, int64_t c, int n, int m) {
    const int64_t e = r * a.columns + c, own = vector * a.rows * a.columns + e;
    T t = acc.x[n][m];
    if (a.bias != nullptr) t += a.bias[vector * a.bias_step + c];
    if (a.out != nullptr) a.out[own] = t;
    if (a.bent == nullptr) return;
    const T first = a.bend.first[e];
    T bent = a.bend.positive ? (first > T(0) ? t : T(0)) : first * t;
    if (a.bend.curved != nullptr) bent += a.bend.curved[e] * a.bend.r[own];
    a.bent[own] = bent;
  });
}

// Block: (row tile and column tile, vector, split).
template <typename T, int kRows, int kColumns, bool kSwapped>
__global__ void __launch_bounds__(kThreads, 2) sum_tiles(const __grid_constant__ SumArgs<T> a) {
  // Swapped, the tile's rows are the result's columns.
  const int64_t rows = kSwapped ? a.place.width : a.rows;
  const int64_t columns = kSwapped ? a.rows : a.place.width;
  const int64_t across = (columns + kColumns - 1) / kColumns;
  const int64_t vector = blockIdx.y, split = blockIdx.z;
  const int64_t row = blockIdx.x / across * kRows, column = blockIdx.x % across * kColumns;
  const int64_t runs = (a.samples + kSumRun - 1) / kSumRun;
  const int64_t begin = runs * split / a.splits * kSumRun;
  const int64_t stop = runs * (split + 1) / a.splits * kSumRun;
  const int64_t end = stop < a.samples ? stop : a.samples;
  constexpr bool kFlush = sizeof(T) < sizeof(double);
  Tile<double> sum{};
  Tile<T> acc{};
  const auto flush = [&] {
#pragma unroll
    for (int n = 0; n < kEach; ++n)
#pragma unroll
      for (int m = 0; m < kEach; ++m) sum.x[n][m] += double(acc.x[n][m]), acc.x[n][m] = T(0);
  };
  for (int p = 0; p < a.pairs; ++p) {
    const Operand<T>&left = kSwapped ? a.b[p] : a.a[p], &right = kSwapped ? a.a[p] : a.b[p];
    if constexpr (kFlush) {
      multiply<T, kRows, kColumns, true>(left, right, vector, row, column, begin, end, acc, flush);
      flush();
    } else {
      multiply<T, kRows, kColumns, false>(left, right, vector, row, column, begin, end, sum, [] {});
    }
  }
  each_element<kColumns>(row, column, rows, columns, [&](int64_t i, int64_t j, int n, int m) {
    const int64_t r = kSwapped ? j : i, c = kSwapped ? i : j;
    const Place& p = a.place;
    if (a.splits > 1) {
      a.parts[((vector * a.splits + split) * a.rows + r) * p.width + c] = sum.x[n][m];
      return;
    }
    const int64_t at = c == p.columns ? p.bias_at + r
                                      : p.at + r * p.row_step + c * p.column_step;
    a.out[vector * a.out_step + at] += sum.x[n][m];
  });
}

}  // namespace

template <typename T>
cudaError_t pair_products(const PairArgs<T>& args, cudaStream_t stream) {
  if (args.g == 0 || args.rows * args.columns == 0) return cudaSuccess;
  const bool slim = args.columns <= kSlim;
  const int64_t count = slim ? blocks(args.rows, kTall)
                             : blocks(args.rows, kSquare) * blocks(args.columns, kSquare);
  const auto kernel =
      slim ? &product_tiles<T, kTall, kSlim> : &product_tiles<T, kSquare, kSquare>;
  launch(kernel, dim3(static_cast<unsigned>(count), static_cast<unsigned>(args.g)), kThreads, 0,
         stream, args);
  return cudaGetLastError();
}

int64_t sum_splits(int64_t rows, int64_t columns, int64_t samples) {
  const int64_t small = std::min(rows, columns), large = std::max(rows, columns);
  const int64_t tiles =
      small <= kSlim ? blocks(large, kTall) : blocks(large, kSquare) * blocks(small, kSquare);
  const int64_t most = std::max<int64_t>(1, samples / kLeastSamples);
  return std::min(most, blocks(kEnoughBlocks, std::max<int64_t>(1, tiles)));
}

template <typename T>
cudaError_t pair_sums(const SumArgs<T>& args, cudaStream_t stream) {
  const int64_t rows = args.rows, columns = args.place.width;
  if (args.g == 0 || rows * columns == 0) return cudaSuccess;
  const bool swapped = columns > rows;
  const int64_t small = std::min(rows, columns), large = std::max(rows, columns);
  const bool slim = small <= kSlim;
  const int64_t count =
      slim ? blocks(large, kTall) : blocks(large, kSquare) * blocks(small, kSquare);
  const auto kernel =
      swapped ? (slim ? &sum_tiles<T, kTall, kSlim, true> : &sum_tiles<T, kSquare, kSquare, true>)
              : (slim ? &sum_tiles<T, kTall, kSlim, false>
                      : &sum_tiles<T, kSquare, kSquare, false>);
  launch(kernel,
         dim3(static_cast<unsigned>(count), static_cast<unsigned>(args.g),
              static_cast<unsigned>(args.splits)),
         kThreads, 0, stream, args);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || args.splits == 1) return error;
  RowSumArgs<double> rest{};
  rest.g = args.g, rest.rows = args.splits, rest.columns = rows * columns;
  rest.x = args.parts, rest.place = args.place;
  rest.out = args.out, rest.out_step = args.out_step;
  return add_row_sums(rest, stream);
}

template cudaError_t pair_products(const PairArgs<float>&, cudaStream_t);
template cudaError_t pair_products(const PairArgs<double>&, cudaStream_t);
template cudaError_t pair_sums(const SumArgs<float>&, cudaStream_t);
template cudaError_t pair_sums(const SumArgs<double>&, cudaStream_t);

}  // namespace pylandscape::cuda
