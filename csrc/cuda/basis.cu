// Passes over an orthonormal basis (basis.h). Blocks (x, y): y is the start; a block takes neighbouring
// tiles of columns, one at a time: first its threads subtract, each a pack of columns of every kGroups-th row; then its warps
// measure, each eight rows at a time.
#include "cuda/basis.h"

#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTogether = 8;          // rows whose loads are under way at once
constexpr int64_t kDotColumns = 2048;  // of a block, at least
constexpr int64_t kMostGroups = 1024;  // several for each multiprocessor that there is
constexpr size_t kStagedBytes = 64 << 10, kSharedBytes = 96 << 10;
// Bytes of a row of a tile: the larger where all rows can wait.
constexpr int kLarge = 1024, kSmall = 256;

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T x[kWidth];
};

template <typename T, int kWidth, int kTileBytes>
struct Tile {
  static constexpr int kColumns = kTileBytes / sizeof(T), kPacks = kColumns / kWidth;
  static constexpr int kGroups = kThreads / kPacks;    // of threads, which share the rows
  static constexpr int kPerLane = kPacks / kWarp;      // packs of a lane while it measures
  static_assert(kPacks % kWarp == 0 && kThreads % kPacks == 0 && kColumns <= kThreads);
  static constexpr int kSums = kGroups * kColumns;     // doubles
};

// Sums of x[r] over the lanes of a warp; lane 4 r has that of r.
__device__ inline double sum_rows(double (&x)[kTogether], int lane) {
  static_assert(kTogether == 8);
#pragma unroll
  for (int half = kTogether / 2, offset = kWarp / 2; half > 0; half /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const double send = upper ? x[i] : x[i + half], keep = upper ? x[i + half] : x[i];
      x[i] = keep + __shfl_xor_sync(0xffffffffu, send, offset);
    }
  }
  double sum = x[0];
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

__device__ inline double warp_total(double x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// sums[r] += row r . w for begin <= r < end, of this tile's columns; row(r) points to the first of
// them, of which `inside` are there. A row belongs to one warp.
template <typename T, int kWidth, int kPerLane, typename Row>
__device__ inline void measure_rows(int64_t begin, int64_t end, int64_t inside, const T* w,
                                    double* sums, Row row) {
  using Wide = Pack<T, kWidth>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Wide own[kPerLane];
#pragma unroll
  for (int k = 0; k < kPerLane; ++k)
    own[k] = *reinterpret_cast<const Wide*>(w + (lane + k * kWarp) * kWidth);
  for (int64_t r = begin + warp * kTogether; r < end; r += kWarps * kTogether) {
    T acc[kTogether] = {};
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int at = (lane + k * kWarp) * kWidth;
      if (at >= inside) continue;
      Wide q[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i)  // past the end the last row comes again, for nothing
        q[i] = *reinterpret_cast<const Wide*>(row(r + i < end ? r + i : end - 1) + at);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
#pragma unroll
        for (int x = 0; x < kWidth; ++x) acc[i] += q[i].x[x] * own[k].x[x];
    }
    double all[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) all[i] = double(acc[i]);
    const double sum = sum_rows(all, lane);
    if (lane % 4 == 0 && r + lane / 4 < end) sums[r + lane / 4] += sum;
  }
}

template <typename T, int kWidth, int kTileBytes>
__global__ void __launch_bounds__(kThreads, 2)
    pass_tiles(const __grid_constant__ BasisArgs<T> a) {
  using Shape = Tile<T, kWidth, kTileBytes>;
  using Wide = Pack<T, kWidth>;
  constexpr int kColumns = Shape::kColumns, kGroups = Shape::kGroups;
  double* const partial = reinterpret_cast<double*>(dynamic_shared());  // (kGroups, kColumns)
  T* const own = reinterpret_cast<T*>(partial + Shape::kSums);          // (kColumns,): w
  T* const rows = own + kColumns;                                       // (staged, kColumns)
  double* const sums = reinterpret_cast<double*>(rows + (a.rows - a.staged) * kColumns);
  const int thread = threadIdx.x, pack = thread % Shape::kPacks, group = thread / Shape::kPacks;
  const int64_t start = blockIdx.y;
  const T* const basis = a.basis + start * a.basis_step;
  const T* const source = a.source != nullptr ? a.source + start * a.source_step : nullptr;
  const double* const source_double =
      source == nullptr ? a.source_double + start * a.source_step : nullptr;
  const double* const c = a.first < a.rows ? a.c + start * a.c_step : nullptr;
  T* const w = a.w != nullptr ? a.w + start * a.w_step : nullptr;
  double* const parts = a.parts + start * (a.rows + 1) * gridDim.x;
  for (int64_t r = thread; r < a.rows; r += kThreads) sums[r] = 0;
  __syncthreads();
  double squares = 0;
  const int64_t tiles = (a.n + kColumns - 1) / kColumns;
  const int64_t last = tiles * (blockIdx.x + 1) / gridDim.x;
  for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < last; ++tile) {
    const int64_t column = tile * kColumns, inside = a.n - column;
    if (a.first < a.rows) {
      double sum[kWidth] = {};
      const int at = pack * kWidth;
      const T* const from = basis + column + at;
      for (int64_t r = a.first + group; r < a.rows; r += kTogether * kGroups) {
        Wide q[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t own_row = r + i * kGroups;
          q[i] = Wide{};
          if (own_row < a.rows && at < inside)
            q[i] = *reinterpret_cast<const Wide*>(from + own_row * a.stride);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t own_row = r + i * kGroups;
          if (own_row >= a.rows) continue;
          const double factor = c[own_row - a.first];
#pragma unroll
          for (int x = 0; x < kWidth; ++x) sum[x] += factor * double(q[i].x[x]);
          if (own_row >= a.staged)
            *reinterpret_cast<Wide*>(rows + (own_row - a.staged) * kColumns + at) = q[i];
        }
      }
#pragma unroll
      for (int x = 0; x < kWidth; ++x) partial[group * kColumns + at + x] = sum[x];
      __syncthreads();
    }
    if (thread < kColumns) {
      const int64_t at = column + thread;
      T value = T(0);
      if (thread < inside) {
        double v = source != nullptr ? double(source[at]) : source_double[at];
        if (a.first < a.rows) {
          double sum = 0;
#pragma unroll
          for (int g = 0; g < kGroups; ++g) sum += partial[g * kColumns + thread];
          v -= sum;
        }
        value = static_cast<T>(v);
        if (w != nullptr) w[at] = value;
      }
      own[thread] = value;
      squares += double(value) * double(value);
    }
    __syncthreads();
    measure_rows<T, kWidth, Shape::kPerLane>(
        0, a.staged, inside, own, sums,
        [&](int64_t r) { return basis + r * a.stride + column; });
    measure_rows<T, kWidth, Shape::kPerLane>(
        a.staged, a.rows, inside, own, sums,
        [&](int64_t r) { return rows + (r - a.staged) * kColumns; });
    __syncthreads();
  }
  for (int64_t r = thread; r < a.rows; r += kThreads) parts[r * gridDim.x + blockIdx.x] = sums[r];
  squares = warp_total(squares);
  if (thread % kWarp == 0) partial[thread / kWarp] = squares;
  __syncthreads();
  if (thread > 0) return;
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += partial[i];
  parts[a.rows * gridDim.x + blockIdx.x] = total;
}

// Warp: one row of parts (rows, groups); the root of every last one of `each`, if that is not 0.
__global__ void __launch_bounds__(kThreads)
    finish_rows(int64_t rows, int64_t each, int64_t groups, const double* parts, double* out) {
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (r >= rows) return;
  double sum = 0;
  for (int64_t g = threadIdx.x % kWarp; g < groups; g += kWarp) sum += parts[r * groups + g];
  sum = warp_total(sum);
  if (threadIdx.x % kWarp == 0) out[r] = each > 0 && r % each == each - 1 ? sqrt(sum) : sum;
}

void finish(int64_t rows, int64_t each, int64_t groups, const double* parts, double* out,
            cudaStream_t stream) {
  launch(&finish_rows, static_cast<unsigned>((rows + kWarps - 1) / kWarps), kThreads, 0, stream,
         rows, each, groups, parts, out);
}

// Block (x, y): a share of the packs of start y.
template <typename T, typename S, int kWidth>
__global__ void __launch_bounds__(kThreads)
    dot_rows(const __grid_constant__ DotArgs<T, S> a) {
  __shared__ double of_warps[kWarps];
  const T* const x = a.x + blockIdx.y * a.x_step;
  const S* const y = a.y + blockIdx.y * a.y_step;
  const int64_t packs = a.n / kWidth, last = packs * (blockIdx.x + 1) / gridDim.x;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = packs * blockIdx.x / gridDim.x + threadIdx.x; i < last; i += kThreads) {
    const auto u = reinterpret_cast<const Pack<T, kWidth>*>(x)[i];
    const auto v = reinterpret_cast<const Pack<S, kWidth>*>(y)[i];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += double(u.x[k]) * double(v.x[k]);
  }
  sum = warp_total(sum);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += of_warps[i];
  a.parts[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = total;
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) scale(const __grid_constant__ ScaleArgs<T> a) {
  using Wide = Pack<T, kWidth>;
  Wide* const x = reinterpret_cast<Wide*>(a.x + blockIdx.y * a.step);
  const double factor = a.factor[blockIdx.y];
  const int64_t packs = a.n / kWidth, step = int64_t{gridDim.x} * kThreads;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs; i += step) {
    Wide v = x[i];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) v.x[k] = static_cast<T>(factor * double(v.x[k]));
    x[i] = v;
  }
}

bool large(int64_t rows) { return rows * kLarge <= static_cast<int64_t>(kStagedBytes); }

template <typename T, int kWidth, int kTileBytes>
cudaError_t launch_tiles(BasisArgs<T> a, unsigned groups, cudaStream_t stream) {
  using Shape = Tile<T, kWidth, kTileBytes>;
  const auto kernel = &pass_tiles<T, kWidth, kTileBytes>;
  const size_t fixed = (Shape::kSums + a.rows) * sizeof(double) + kTileBytes;
  const int64_t fit = std::min(kStagedBytes, kSharedBytes - fixed) / kTileBytes;
  a.staged = std::max(a.first, a.rows - fit);
  const size_t shared = fixed + (a.rows - a.staged) * kTileBytes;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes));
  if (error != cudaSuccess) return error;
  launch(kernel, dim3(groups, static_cast<unsigned>(a.starts)), kThreads, shared, stream, a);
  return cudaSuccess;
}

template <typename T>
bool aligned(const BasisArgs<T>& a, size_t bytes) {
  const int64_t width = static_cast<int64_t>(bytes / sizeof(T));
  return a.n % width == 0 && a.stride % width == 0 && a.basis_step % width == 0 &&
         reinterpret_cast<uintptr_t>(a.basis) % bytes == 0;
}

// Whether vectors (n,), a step apart, are whole packs.
template <typename T>
bool whole(const T* x, int64_t n, int64_t step, int64_t width) {
  return n % width == 0 && step % width == 0 &&
         reinterpret_cast<uintptr_t>(x) % (width * sizeof(T)) == 0;
}

bool fits(int64_t starts) { return starts >= 1 && starts <= kMostStarts; }

}  // namespace

int64_t basis_groups(int64_t rows, int64_t n, size_t size) {
  const int64_t columns = static_cast<int64_t>((large(rows) ? kLarge : kSmall) / size);
  return std::clamp<int64_t>((n + columns - 1) / columns, 1, kMostGroups);
}

template <typename T>
cudaError_t basis_pass(BasisArgs<T> args, double* out, cudaStream_t stream) {
  if (args.rows > kMostBasisRows || !fits(args.starts)) return cudaErrorInvalidValue;
  constexpr int kWideLarge = 16 / sizeof(T), kWideSmall = 8 / sizeof(T);
  const int64_t groups = basis_groups(args.rows, args.n, sizeof(T));
  const auto run = large(args.rows)
                       ? (aligned(args, 16) ? &launch_tiles<T, kWideLarge, kLarge>
                                            : &launch_tiles<T, 1, kLarge>)
                       : (aligned(args, 8) ? &launch_tiles<T, kWideSmall, kSmall>
                                           : &launch_tiles<T, 1, kSmall>);
  const cudaError_t error = run(args, static_cast<unsigned>(groups), stream);
  if (error != cudaSuccess) return error;
  finish(args.starts * (args.rows + 1), args.rows + 1, groups, args.parts, out, stream);
  return cudaGetLastError();
}

int64_t dot_groups(int64_t n) {
  return std::clamp<int64_t>((n + kDotColumns - 1) / kDotColumns, 1, kMostGroups);
}

template <typename T, typename S>
cudaError_t row_dots(const DotArgs<T, S>& args, double* out, cudaStream_t stream) {
  if (!fits(args.starts)) return cudaErrorInvalidValue;
  constexpr int kWide = 16 / sizeof(T) < 16 / sizeof(S) ? 16 / sizeof(T) : 16 / sizeof(S);
  const bool wide = whole(args.x, args.n, args.x_step, kWide) &&
                    whole(args.y, args.n, args.y_step, kWide);
  const int64_t groups = dot_groups(args.n);
  launch(wide ? &dot_rows<T, S, kWide> : &dot_rows<T, S, 1>,
         dim3(static_cast<unsigned>(groups), static_cast<unsigned>(args.starts)), kThreads, 0,
         stream, args);
  finish(args.starts, 0, groups, args.parts, out, stream);
  return cudaGetLastError();
}

template <typename T>
cudaError_t scale_rows(const ScaleArgs<T>& args, cudaStream_t stream) {
  if (!fits(args.starts)) return cudaErrorInvalidValue;
  constexpr int kWide = 16 / sizeof(T);
  const bool wide = whole(args.x, args.n, args.step, kWide);
  const int64_t blocks = std::clamp<int64_t>(args.n / (4 * kThreads), 1, 1 << 16);
  launch(wide ? &scale<T, kWide> : &scale<T, 1>,
         dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(args.starts)), kThreads, 0,
         stream, args);
  return cudaGetLastError();
}

template cudaError_t basis_pass(BasisArgs<float>, double*, cudaStream_t);
template cudaError_t basis_pass(BasisArgs<double>, double*, cudaStream_t);
template cudaError_t row_dots(const DotArgs<float, float>&, double*, cudaStream_t);
template cudaError_t row_dots(const DotArgs<float, double>&, double*, cudaStream_t);
template cudaError_t row_dots(const DotArgs<double, double>&, double*, cudaStream_t);
template cudaError_t scale_rows(const ScaleArgs<float>&, cudaStream_t);
template cudaError_t scale_rows(const ScaleArgs<double>&, cudaStream_t);

}  // namespace pylandscape::cuda
