// Fused draw and normalisation. Compiled with --fmad=false: the draw has the CPU's bits.
//
// A team (a warp or a block) of threads works on one range. A thread's numbers come four at a time:
// those of one Philox block, 16 elements apart, so that 16 neighbouring threads read and write 64
// neighbouring elements (common/gaussian.h has the order of numbers).
#include "cuda/directions.h"

#include "common/gaussian.h"
#include "cuda/launch.h"
#include "cuda/shape.h"

namespace pylandscape::cuda {
namespace {

struct Sums {
  double d2 = 0, theta2 = 0;
};

// The elements of one Philox block within a range: first + 16 l, l = 0 .. 3.
struct Quad {
  int64_t block, first;
  __device__ Quad(const Range& range, int64_t index)
      : block(range.begin / gaussian::kGroup * gaussian::kBlocks + index),
        first(block / gaussian::kBlocks * gaussian::kGroup + block % gaussian::kBlocks) {}
  __device__ int64_t element(int l) const { return first + gaussian::kBlocks * l; }
};

__device__ inline bool within(const Range& range, int64_t i) {
  return range.begin <= i && i < range.end;
}

__device__ inline int64_t quads(const Range& range) {
  const int64_t groups = (range.end - 1) / gaussian::kGroup - range.begin / gaussian::kGroup + 1;
  return groups * gaussian::kBlocks;
}

// d[l] = the unscaled direction at quad.element(l); zero outside the range.
template <typename T>
__device__ inline void load(const DirectionArgs<T>& a, const Range& range, const Quad& quad, T* d) {
  float z[kPerThread];
  if (a.direction == nullptr) gaussian::normals(a.seed, a.stream, quad.block, z);
#pragma unroll
  for (int l = 0; l < kPerThread; ++l) {
    const int64_t i = quad.element(l);
    d[l] = !within(range, i) ? T(0) : a.direction == nullptr ? T(z[l]) : a.direction[i];
  }
}

template <typename T>
__device__ inline void add_squares(const DirectionArgs<T>& a, const Range& range, const Quad& quad,
                                   const T* d, Sums& sums) {
#pragma unroll
  for (int l = 0; l < kPerThread; ++l) {
    if (!within(range, quad.element(l))) continue;
    const double theta = a.theta[quad.element(l)];
    sums.d2 += double(d[l]) * double(d[l]);
    sums.theta2 += theta * theta;
  }
}

// The sum over a team, in every thread of it; a tree of fixed shape. A team of a block's size is
// the block, and all its threads call this.
template <int kTeam>
__device__ inline Sums team_sum(Sums x) {
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    x.d2 += __shfl_xor_sync(0xffffffffu, x.d2, offset);
    x.theta2 += __shfl_xor_sync(0xffffffffu, x.theta2, offset);
  }
  if constexpr (kTeam > kWarpThreads) {
    __shared__ double parts[2][kTeam / kWarpThreads];
    const int warp = threadIdx.x / kWarpThreads;
    if (threadIdx.x % kWarpThreads == 0) parts[0][warp] = x.d2, parts[1][warp] = x.theta2;
    __syncthreads();
    x = Sums{};
#pragma unroll
    for (int w = 0; w < kTeam / kWarpThreads; ++w) x.d2 += parts[0][w], x.theta2 += parts[1][w];
  }
  return x;
}

// Segments that a team holds in registers: direction and theta are read once, out written once.
template <typename T, int kTeam>
__global__ void __launch_bounds__(kBlockThreads)
    whole_segments(DirectionArgs<T> a, const Range* ranges, int64_t count) {
  const int64_t index = (int64_t{blockIdx.x} * kBlockThreads + threadIdx.x) / kTeam;
  const int thread = threadIdx.x % kTeam;
  if (index >= count) return;  // the whole team
  const Range range = ranges[index];
  const int64_t work = quads(range);
  T d[kHeldRounds][kPerThread];
  Sums sums;
#pragma unroll
  for (int r = 0; r < kHeldRounds; ++r) {
    if (r * kTeam + thread >= work) continue;
    const Quad quad(range, r * kTeam + thread);
    load(a, range, quad, d[r]);
    add_squares(a, range, quad, d[r], sums);
  }
  sums = team_sum<kTeam>(sums);
  const T f = static_cast<T>(factor(a.mode.target, sums.d2, sums.theta2));
#pragma unroll
  for (int r = 0; r < kHeldRounds; ++r) {
    if (r * kTeam + thread >= work) continue;
    const Quad quad(range, r * kTeam + thread);
#pragma unroll
    for (int l = 0; l < kPerThread; ++l)
      if (within(range, quad.element(l))) a.out[quad.element(l)] = f * d[r][l];
  }
}

// sums[b] = the sums of chunk b, a block each. The direction is not kept: to read or draw it again
// moves fewer bytes than to write it and read it back.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    measure_chunks(DirectionArgs<T> a, const Range* chunks, Sums* sums) {
  const Range range = chunks[blockIdx.x];
  const int64_t work = quads(range);
  Sums own;
  for (int64_t i = threadIdx.x; i < work; i += kBlockThreads) {
    const Quad quad(range, i);
    T d[kPerThread];
    load(a, range, quad, d);
    add_squares(a, range, quad, d, own);
  }
  own = team_sum<kBlockThreads>(own);
  if (threadIdx.x == 0) sums[blockIdx.x] = own;
}

// factors[b] of large segment b, whose chunks are owners[b].
__global__ void __launch_bounds__(kBlockThreads)
    find_factors(Target target, const Range* owners, const Sums* sums, double* factors) {
  const Range range = owners[blockIdx.x];
  Sums own;
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kBlockThreads)
    own.d2 += sums[i].d2, own.theta2 += sums[i].theta2;
  own = team_sum<kBlockThreads>(own);
  if (threadIdx.x == 0) factors[blockIdx.x] = factor(target, own.d2, own.theta2);
}

// factors null: the mode has no norm.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    scale_chunks(DirectionArgs<T> a, const Range* chunks, const double* factors) {
  const Range range = chunks[blockIdx.x];
  const T f = factors == nullptr ? T(1) : static_cast<T>(factors[range.owner]);
  const bool elementwise = a.mode.target == Target::kElementwise;
  const int64_t work = quads(range);
  for (int64_t i = threadIdx.x; i < work; i += kBlockThreads) {
    const Quad quad(range, i);
    T d[kPerThread];
    load(a, range, quad, d);
#pragma unroll
    for (int l = 0; l < kPerThread; ++l) {
      const int64_t e = quad.element(l);
      if (within(range, e)) a.out[e] = (elementwise ? a.theta[e] : f) * d[l];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) zero_ranges(T* out, const Range* ranges) {
  const Range range = ranges[blockIdx.x];
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kBlockThreads) out[i] = T(0);
}

__global__ void __launch_bounds__(kBlockThreads)
    draw_range(uint64_t seed, uint64_t stream, Range range, float* out) {
  const int64_t index = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (index >= quads(range)) return;
  const Quad quad(range, index);
  float z[kPerThread];
  gaussian::normals(seed, stream, quad.block, z);
#pragma unroll
  for (int l = 0; l < kPerThread; ++l)
    if (within(range, quad.element(l))) out[quad.element(l) - range.begin] = z[l];
}

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace

template <typename T>
cudaError_t make_direction(const DirectionArgs<T>& args, const Plan& plan, const Range* ranges,
                           double* work, cudaStream_t stream) {
  const auto of = [&](Plan::Kind kind) { return ranges + plan.first[kind]; };
  const int64_t warps = plan.count(Plan::kWarp), whole = plan.count(Plan::kBlock);
  const int64_t chunks = plan.count(Plan::kChunk), owners = plan.count(Plan::kOwner);
  const int64_t zeros = plan.count(Plan::kZero);
  if (warps > 0)
    launch(&whole_segments<T, kWarpThreads>, blocks(warps, kBlockThreads / kWarpThreads),
           kBlockThreads, 0, stream, args, of(Plan::kWarp), warps);
  if (whole > 0)
    launch(&whole_segments<T, kBlockThreads>, blocks(whole, 1), kBlockThreads, 0, stream, args,
           of(Plan::kBlock), whole);
  if (chunks > 0) {
    double* factors = nullptr;
    if (args.mode.has_norm()) {
      Sums* sums = reinterpret_cast<Sums*>(work);
      factors = work + 2 * chunks;
      launch(&measure_chunks<T>, blocks(chunks, 1), kBlockThreads, 0, stream, args,
             of(Plan::kChunk), sums);
      launch(&find_factors, blocks(owners, 1), kBlockThreads, 0, stream, args.mode.target,
             of(Plan::kOwner), sums, factors);
    }
    launch(&scale_chunks<T>, blocks(chunks, 1), kBlockThreads, 0, stream, args, of(Plan::kChunk),
           factors);
  }
  if (zeros > 0)
    launch(&zero_ranges<T>, blocks(zeros, 1), kBlockThreads, 0, stream, args.out, of(Plan::kZero));
  return cudaGetLastError();
}

cudaError_t gaussian(uint64_t seed, uint64_t stream_number, int64_t first, int64_t n, float* out,
                     cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const Range range{first, first + n, 0};
  const int64_t threads =
      ((range.end - 1) / gaussian::kGroup - first / gaussian::kGroup + 1) * gaussian::kBlocks;
  launch(&draw_range, blocks(threads, kBlockThreads), kBlockThreads, 0, stream, seed,
         stream_number, range, out);
  return cudaGetLastError();
}

template cudaError_t make_direction(const DirectionArgs<float>&, const Plan&, const Range*, double*,
                                    cudaStream_t);
template cudaError_t make_direction(const DirectionArgs<double>&, const Plan&, const Range*,
                                    double*, cudaStream_t);

}  // namespace pylandscape::cuda
