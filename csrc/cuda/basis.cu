// Passes over an orthonormal basis (basis.h). A block takes neighbouring tiles of columns, one at a
// time: first its threads subtract, each a pack of columns of every kGroups-th row; then its warps
// measure, each eight rows at a time.
#include "cuda/basis.h"

#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTogether = 8;          // rows whose loads are under way at once
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
      const T* const from = a.basis + column + at;
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
          const double factor = a.c[own_row - a.first];
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
      const int64_t c = column + thread;
      T value = T(0);
      if (thread < inside) {
        double v = a.source != nullptr ? double(a.source[c]) : a.source_double[c];
        if (a.first < a.rows) {
          double sum = 0;
#pragma unroll
          for (int g = 0; g < kGroups; ++g) sum += partial[g * kColumns + thread];
          v -= sum;
        }
        value = static_cast<T>(v);
        if (a.w != nullptr) a.w[c] = value;
      }
      own[thread] = value;
      squares += double(value) * double(value);
    }
    __syncthreads();
    measure_rows<T, kWidth, Shape::kPerLane>(
        0, a.staged, inside, own, sums,
        [&](int64_t r) { return a.basis + r * a.stride + column; });
    measure_rows<T, kWidth, Shape::kPerLane>(
        a.staged, a.rows, inside, own, sums,
        [&](int64_t r) { return rows + (r - a.staged) * kColumns; });
    __syncthreads();
  }
  for (int64_t r = thread; r < a.rows; r += kThreads) a.parts[r * gridDim.x + blockIdx.x] = sums[r];
  squares = warp_total(squares);
  if (thread % kWarp == 0) partial[thread / kWarp] = squares;
  __syncthreads();
  if (thread > 0) return;
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += partial[i];
  a.parts[a.rows * gridDim.x + blockIdx.x] = total;
}

// Warp: one row of parts (rows + 1, groups); the last one's root.
__global__ void __launch_bounds__(kThreads)
    finish_rows(int64_t rows, int64_t groups, const double* parts, double* out) {
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (r > rows) return;
  double sum = 0;
  for (int64_t g = threadIdx.x % kWarp; g < groups; g += kWarp) sum += parts[r * groups + g];
  sum = warp_total(sum);
  if (threadIdx.x % kWarp == 0) out[r] = r < rows ? sum : sqrt(sum);
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
  launch(kernel, groups, kThreads, shared, stream, a);
  return cudaSuccess;
}

template <typename T>
bool aligned(const BasisArgs<T>& a, size_t bytes) {
  const int64_t width = static_cast<int64_t>(bytes / sizeof(T));
  return a.n % width == 0 && a.stride % width == 0 &&
         reinterpret_cast<uintptr_t>(a.basis) % bytes == 0;
}

}  // namespace

int64_t basis_groups(int64_t rows, int64_t n, size_t size) {
  const int64_t columns = static_cast<int64_t>((large(rows) ? kLarge : kSmall) / size);
  return std::clamp<int64_t>((n + columns - 1) / columns, 1, kMostGroups);
}

template <typename T>
cudaError_t basis_pass(BasisArgs<T> args, double* out, cudaStream_t stream) {
  if (args.rows > kMostBasisRows) return cudaErrorInvalidValue;
  constexpr int kWideLarge = 16 / sizeof(T), kWideSmall = 8 / sizeof(T);
  const int64_t groups = basis_groups(args.rows, args.n, sizeof(T));
  const auto run = large(args.rows)
                       ? (aligned(args, 16) ? &launch_tiles<T, kWideLarge, kLarge>
                                            : &launch_tiles<T, 1, kLarge>)
                       : (aligned(args, 8) ? &launch_tiles<T, kWideSmall, kSmall>
                                           : &launch_tiles<T, 1, kSmall>);
  const cudaError_t error = run(args, static_cast<unsigned>(groups), stream);
  if (error != cudaSuccess) return error;
  launch(&finish_rows, static_cast<unsigned>((args.rows + kWarps) / kWarps), kThreads, 0, stream,
         args.rows, groups, args.parts, out);
  return cudaGetLastError();
}

template cudaError_t basis_pass(BasisArgs<float>, double*, cudaStream_t);
template cudaError_t basis_pass(BasisArgs<double>, double*, cudaStream_t);

}  // namespace pylandscape::cuda
