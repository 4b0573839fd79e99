// Three kernels: a team of threads reduces a matrix (Golub and Van Loan, Matrix Computations,
// 8.3.1); a thread iterates on its diagonals (Pal, Walker and Kahan; Parlett, The Symmetric
// Eigenvalue Problem, 8.15); a warp puts the values in order.
//
// The reduction passes over the square once per row: the update A <- A - u q^T - q u^T of one
// reflection and the product p = A v of the next go together.
#include "cuda/eigenvalues.h"

#include <math.h>

#include <algorithm>

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kSolveThreads = 64;  // few, so that few matrices are still many blocks
constexpr int kMostSweeps = 80;    // per eigenvalue; 2 are usual
constexpr double kEps = 1.1102230246251565e-16;  // half an ulp of 1
constexpr size_t kSharedBytes = 96 << 10;

struct ReduceArgs {
  int64_t count, n;
  const double* matrices;
  double* copy;   // (count, n, n) beyond kSharedOrder, or null
  double* d;      // (n, count)
  double* e;      // (n, count): squares of the off-diagonals
  double* scale;  // (count,): the matrix was multiplied by it; NaN where it is not finite
};

// Threads that share a matrix, warps of it and what it keeps in shared memory besides the matrix.
template <int kTeam>
struct Team {
  static constexpr int kTeamWarps = kTeam / kWarp, kVectors = 3 + kTeamWarps;
  static __device__ void sync() {
    if constexpr (kTeam == kWarp) __syncwarp();
    else __syncthreads();
  }
};

__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// The power of two that brings `top` to at most 1; 1 for zero.
__device__ inline double power_below(double top) {
  int exponent = 0;
  frexp(top, &exponent);
  return top > 0 ? ldexp(1.0, -(exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent))
                 : 1.0;
}

// The largest |a| of the lower triangle, NaN where one is not finite; in every thread of the team.
// `each`: a double for every warp of the team.
template <int kTeam>
__device__ inline double largest(int n, const double* m, int thread, double* each) {
  double top = 0, bad = 0;
  for (int r = thread / kWarp; r < n; r += kTeam / kWarp)
    for (int c = thread % kWarp; c <= r; c += kWarp) {
      const double a = m[int64_t{r} * n + c];
      top = fmax(top, fabs(a)), bad += a * 0.0;
    }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    top = fmax(top, __shfl_xor_sync(0xffffffffu, top, offset));
    bad += __shfl_xor_sync(0xffffffffu, bad, offset);
  }
  if constexpr (kTeam > kWarp) {
    if (thread % kWarp == 0) each[thread / kWarp] = top + bad;
    __syncthreads();
    top = 0, bad = 0;
    for (int w = 0; w < kTeam / kWarp; ++w) top = fmax(top, each[w]), bad += each[w] * 0.0;
    __syncthreads();
  }
  return top + bad;
}

// Reduces A (n, n) with rows of `stride`, its lower triangle scaled and mirrored. vectors: kVectors
// of n each.
template <int kTeam>
__device__ inline void tridiagonalize(int n, int stride, double* a, double* vectors, int thread,
                                      const ReduceArgs& args, int64_t matrix) {
  using T = Team<kTeam>;
  const int lane = thread % kWarp, warp = thread / kWarp;
  double *u = vectors, *q = u + n, *v = q + n, *const p = v + n;  // p (kTeamWarps, n)
  for (int i = n - 1; i > 0; --i) {
    // Row i as it is now, in every warp the same: only the first writes.
    const double* row = a + int64_t{i} * stride;
    const double ui = u[i], qi = q[i];
    double tail = 0, f = 0;
    for (int c = lane; c <= i; c += kWarp) {
      const double x = row[c] - ui * q[c] - qi * u[c];
      if (warp == 0) v[c] = x;
      if (c < i - 1) tail += x * x;
      if (c == i - 1) f = x;
      if (c == i && warp == 0) args.d[i * args.count + matrix] = x;
    }
    tail = warp_sum(tail), f = __shfl_sync(0xffffffffu, f, (i - 1) % kWarp);
    const double h = tail + f * f, size = sqrt(h), g = f > 0 ? -size : size;
    const double inverse = tail > 0 ? 1.0 / (h - f * g) : 0.0;
    if (warp == 0 && lane == (i - 1) % kWarp) {
      v[i - 1] = tail > 0 ? f - g : 0.0;
      args.e[(i - 1) * args.count + matrix] = h;
    }
    T::sync();
    for (int c = lane; c < i; c += kWarp) {
      const double uc = u[c], qc = q[c];
      double sum = 0;
      for (int r = warp; r < i; r += T::kTeamWarps) {
        double* to = a + int64_t{r} * stride + c;
        const double x = *to - u[r] * qc - q[r] * uc;
        *to = x;
        sum += x * v[r];
      }
      p[warp * n + c] = sum;
    }
    T::sync();
    // q = p / H - v (v . p) / 2 H^2; each warp finds the same v . p.
    double dot = 0;
    for (int c = lane; c < i; c += kWarp) {
      double sum = 0;
#pragma unroll
      for (int w = 0; w < T::kTeamWarps; ++w) sum += p[w * n + c];
      dot += v[c] * sum * inverse;
    }
    const double half = 0.5 * warp_sum(dot) * inverse;
    for (int c = thread; c < i; c += kTeam) {
      double sum = 0;
#pragma unroll
      for (int w = 0; w < T::kTeamWarps; ++w) sum += p[w * n + c];
      q[c] = sum * inverse - half * v[c];
    }
    double* const old = u;
    u = v, v = old;
    T::sync();
  }
  if (thread == 0) {
    args.d[matrix] = a[0];
    args.e[(n - 1) * args.count + matrix] = 0;
  }
}

// kInside: the matrix is in shared memory.
template <int kTeam, bool kInside>
__global__ void __launch_bounds__(kThreads, 2) reduce(const __grid_constant__ ReduceArgs args) {
  using T = Team<kTeam>;
  const int n = static_cast<int>(args.n), stride = kInside ? n | 1 : n;
  const int thread = threadIdx.x % kTeam, lane = thread % kWarp;
  const int64_t matrix = int64_t{blockIdx.x} * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (matrix >= args.count) return;  // the whole team
  const int64_t each = T::kVectors * n + (kInside ? int64_t{n} * stride : 0);
  double* const vectors =
      reinterpret_cast<double*>(dynamic_shared()) + threadIdx.x / kTeam * each;
  double* const a = kInside ? vectors + T::kVectors * n : args.copy + matrix * n * n;
  const double* const from = args.matrices + matrix * n * n;
  const double top = largest<kTeam>(n, from, thread, vectors);
  const bool fine = top - top == 0.0;
  const double by = fine ? power_below(top) : 0.0;
  if (thread == 0) args.scale[matrix] = fine ? by : top - top;
  for (int r = thread / kWarp; r < n; r += T::kTeamWarps)
    for (int c = lane; c <= r; c += kWarp) {
      const double x = fine ? from[int64_t{r} * n + c] * by : 0.0;
      a[int64_t{r} * stride + c] = x, a[int64_t{c} * stride + r] = x;
    }
  for (int c = thread; c < 3 * n; c += kTeam) vectors[c] = 0;
  T::sync();
  tridiagonalize<kTeam>(n, stride, a, vectors, thread, args, matrix);
}

// Thread: one matrix. d (n, count) becomes its eigenvalues, in no order; NaN where it failed.
__global__ void __launch_bounds__(kSolveThreads)
    solve(int64_t count, int64_t n, double* all_d, double* all_e, const double* scales) {
  const int64_t matrix = int64_t{blockIdx.x} * kSolveThreads + threadIdx.x;
  if (matrix >= count) return;
  const auto d = [&](int64_t i) -> double& { return all_d[i * count + matrix]; };
  const auto e = [&](int64_t i) -> double& { return all_e[i * count + matrix]; };
  double top = 0;
  for (int64_t i = 0; i < n; ++i) top = fmax(top, fmax(fabs(d(i)), sqrt(e(i))));
  const double floor = (0.5 * kEps * top) * (0.5 * kEps * top), scale = scales[matrix];
  bool failed = isnan(scale);
  for (int64_t l = 0; l + 1 < n && !failed; ++l) {
    for (int sweep = 0;; ++sweep) {
      int64_t m = l;
      for (; m + 1 < n; ++m)
        if (e(m) <= floor || e(m) <= kEps * kEps * fabs(d(m) * d(m + 1))) break;
      if (m == l) break;
      if (sweep == kMostSweeps) {
        failed = true;
        break;
      }
      const double dl = d(l), root = sqrt(e(l));
      double sigma = (d(l + 1) - dl) / (2.0 * root);
      const double r = sqrt(sigma * sigma + 1.0);
      sigma = dl - root / (sigma + (sigma < 0 ? -r : r));
      double c = 1.0, s = 0.0, gamma = d(m) - sigma, p = gamma * gamma;
      for (int64_t i = m - 1; i >= l; --i) {
        const double bb = e(i), sum = p + bb;
        if (i + 1 < m) e(i + 1) = s * sum;
        const double old_c = c, old_gamma = gamma, alpha = d(i);
        c = p / sum, s = bb / sum;
        gamma = c * (alpha - sigma) - s * old_gamma;
        d(i + 1) = old_gamma + (alpha - gamma);
        p = c == 0.0 ? old_c * bb : gamma * gamma / c;
      }
      e(l) = s * p;
      d(l) = sigma + gamma;
    }
  }
  for (int64_t i = 0; i < n; ++i) d(i) = failed ? scale - scale + NAN : d(i) / scale;
}

// Warp: the values of one matrix, each to the place that the others leave it.
__global__ void __launch_bounds__(kThreads)
    sort_values(int64_t count, int64_t n, const double* d, double* out) {
  const int64_t matrix = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (matrix >= count) return;
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) {
    const double own = d[i * count + matrix];
    int64_t place = isnan(own) ? i : 0;  // one is NaN: all are
    for (int64_t j = 0; j < n; ++j) {
      const double other = d[j * count + matrix];
      place += other < own || (other == own && j < i);
    }
    out[matrix * n + place] = own;
  }
}

unsigned blocks(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

template <int kTeam, bool kInside>
cudaError_t launch_reduce(const ReduceArgs& args, cudaStream_t stream) {
  const auto kernel = &reduce<kTeam, kInside>;
  constexpr int kTeams = kThreads / kTeam;
  const int64_t each = Team<kTeam>::kVectors * args.n + (kInside ? args.n * (args.n | 1) : 0);
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes));
  if (error != cudaSuccess) return error;
  launch(kernel, blocks(args.count, kTeams), kThreads, kTeams * each * sizeof(double), stream,
         args);
  return cudaSuccess;
}

}  // namespace

int64_t eigenvalue_work(int64_t count, int64_t n) {
  return count * (2 * n + 1) + (n > kSharedOrder ? count * n * n : 0);
}

cudaError_t eigenvalues(int64_t count, int64_t n, const double* matrices, double* work, double* out,
                        cudaStream_t stream) {
  if (count == 0 || n == 0) return cudaSuccess;
  if (n > kMostOrder) return cudaErrorInvalidValue;
  ReduceArgs args{count, n, matrices, nullptr, work, work + count * n, work + 2 * count * n};
  if (n > kSharedOrder) args.copy = args.scale + count;
  const cudaError_t error = n <= kWarp          ? launch_reduce<kWarp, true>(args, stream)
                            : n <= kSharedOrder ? launch_reduce<kThreads, true>(args, stream)
                                                : launch_reduce<kThreads, false>(args, stream);
  if (error != cudaSuccess) return error;
  launch(&solve, blocks(count, kSolveThreads), kSolveThreads, 0, stream, count, n, args.d, args.e,
         static_cast<const double*>(args.scale));
  launch(&sort_values, blocks(count, kWarps), kThreads, 0, stream, count, n,
         static_cast<const double*>(args.d), out);
  return cudaGetLastError();
}

}  // namespace pylandscape::cuda
