// The losses of many points of a network that stays in shared memory (common/resident.h).
//
// A block takes one tile of samples through the whole network, at one point after the other (or, of
// few samples, all of them at several points at once). A thread owns one sample; the `groups`
// threads of a sample divide the rows of each step. Between steps of a block with one group nothing
// has to wait: a sample's rows are written and read by its own thread.
#include "cuda/resident.h"

#include "cuda/elementary.cuh"
#include "cuda/launch.h"
#include "cuda/losses.cuh"

namespace pylandscape::cuda {
namespace {

using resident::Kind;
using resident::Panels;
using resident::Program;
using resident::Step;

constexpr int kWide = 4;    // weights that are read in one access
constexpr int kBlocks = 2;  // of a multiprocessor at least, as shared memory is planned: 128 registers

template <typename T>
struct alignas(sizeof(T) * kWide <= 16 ? sizeof(T) * kWide : 16) Wide {
  T x[kWide];
};

// What a thread sees: its column of the arena and of the external matrix, its point's weights.
template <typename T, bool kOnePoint>
struct View {
  T* arena;           // its column
  const T* external;  // its sample
  const T* weights;   // its point
  int64_t samples;
  int columns, points;
  int group, groups;

  __device__ const T* row(int32_t r) const {
    return r >= 0 ? arena + static_cast<int64_t>(r) * columns
                  : external + (int64_t{-1} - r) * samples;
  }
  __device__ int64_t stride(int32_t r) const { return r >= 0 ? columns : samples; }
  __device__ T read(int32_t r) const { return *row(r); }
  __device__ T& out(int32_t r) const { return arena[r * columns]; }
  __device__ T weight(int32_t i) const { return weights[kOnePoint ? i : i * points]; }
};

// kRows rows of a linear step, sum after sum in the order of k. w: where their panel begins.
template <int kRows, typename T, bool kOnePoint>
__device__ void linear_panel(const View<T, kOnePoint>& v, const T* x, int64_t stride, int32_t k,
                             int32_t w, int32_t bias, bool rectify, T* y) {
  T sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) sum[r] = bias >= 0 ? v.weight(bias + r) : T(0);
  for (int32_t i = 0; i < k; ++i, x += stride, w += kRows) {
    const T value = *x;
    if constexpr (kOnePoint && kRows >= kWide) {
#pragma unroll
      for (int r = 0; r < kRows; r += kWide) {
        const auto four = *reinterpret_cast<const Wide<T>*>(v.weights + w + r);
#pragma unroll
        for (int l = 0; l < kWide; ++l) sum[r + l] += four.x[l] * value;
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += v.weight(w + r) * value;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) y[r * v.columns] = rectify ? relu(sum[r]) : sum[r];
}

template <typename T, bool kOnePoint>
__device__ void linear(const View<T, kOnePoint>& v, const Step& s) {
  const Panels panels(s.m);
  const int32_t count = panels.count(), all = s.outer * count;
  for (int32_t item = v.group; item < all; item += v.groups) {
    const int32_t o = item / count, p = item % count;
    const int32_t x_row = resident::row_after(s.x, o * s.k);
    const T* x = v.row(x_row);
    const int64_t stride = v.stride(s.x);
    const auto run = [&](auto rows, int32_t first) {
      constexpr int kRows = decltype(rows)::value;
      linear_panel<kRows>(v, x, stride, s.k, s.weight + first * s.k,
                          s.bias >= 0 ? s.bias + first : -1, s.relu != 0,
                          &v.out(s.out + o * s.m + first));
    };
    const int32_t whole = panels.whole * resident::kWidest;
    const int32_t after4 = whole + (panels.rest & 4), after2 = after4 + (panels.rest & 2);
    if (p < panels.whole) {
      run(std::integral_constant<int, resident::kWidest>(), p * resident::kWidest);
    } else {  // of the rest, the panels that are there, in this order
      const int32_t place = p - panels.whole;
      const bool four = (panels.rest & 4) != 0, two = (panels.rest & 2) != 0;
      if (four && place == 0) run(std::integral_constant<int, 4>(), whole);
      else if (two && place == (four ? 1 : 0)) run(std::integral_constant<int, 2>(), after4);
      else run(std::integral_constant<int, 1>(), after2);
    }
  }
}

template <typename T, bool kOnePoint>
__device__ void combine(const View<T, kOnePoint>& v, const Step& s, const int32_t* list,
                        const T* c) {
  for (int32_t r = v.group; r < s.m; r += v.groups) {
    const T* z = v.row(resident::row_after(s.x, r));
    T sum = *z;
    for (int32_t j = 0; j < s.k; ++j) {
      z += s.m * v.samples;
      sum += c[list[s.index + j]] * *z;
    }
    if (s.bias >= 0) sum += v.weight(s.bias + r % s.inner);
    v.out(s.out + r) = s.relu != 0 ? relu(sum) : sum;
  }
}

// Mean and variance in double, in two passes; the mean is kept in two parts (cpu/elementwise.inl).
template <typename T, bool kOnePoint>
__device__ void layer_norm(const View<T, kOnePoint>& v, const Step& s) {
  const double share = 1.0 / double(s.k);
  for (int32_t o = v.group; o < s.outer; o += v.groups) {
    const T* x = v.row(resident::row_after(s.x, o * s.k));
    const int64_t stride = v.stride(s.x);
    T* y = &v.out(s.out + o * s.k);
    double sum = 0, squares = 0;
    for (int32_t f = 0; f < s.k; ++f) sum += double(x[f * stride]);
    const T mean = static_cast<T>(sum * share);
    const T rest = static_cast<T>(sum * share - double(mean));
    for (int32_t f = 0; f < s.k; ++f) {
      const T d = (x[f * stride] - mean) - rest;
      y[f * v.columns] = d;
      squares += double(d) * double(d);
    }
    const T scale = static_cast<T>(1.0 / sqrt(squares * share + s.a));
    for (int32_t f = 0; f < s.k; ++f) {
      T d = y[f * v.columns] * scale;
      if (s.weight >= 0) d *= v.weight(s.weight + f);
      if (s.bias >= 0) d += v.weight(s.bias + f);
      y[f * v.columns] = d;
    }
  }
}

template <typename T, bool kOnePoint>
__device__ void softmax(const View<T, kOnePoint>& v, const Step& s) {
  const int32_t items = s.outer * s.inner;
  for (int32_t item = v.group; item < items; item += v.groups) {
    const int32_t first = item / s.inner * s.k * s.inner + item % s.inner;
    const T* x = v.row(resident::row_after(s.x, first));
    const int64_t step_x = s.inner * v.stride(s.x), step_y = int64_t{s.inner} * v.columns;
    T* y = &v.out(s.out + first);
    T top = *x;
    for (int32_t f = 1; f < s.k; ++f) top = x[f * step_x] > top ? x[f * step_x] : top;
    double sum = 0;
    if (s.log != 0) {
      for (int32_t f = 0; f < s.k; ++f) sum += exp_difference(x[f * step_x], top);
      const double shift = log(sum);
      for (int32_t f = 0; f < s.k; ++f)
        y[f * step_y] = static_cast<T>((double(x[f * step_x]) - double(top)) - shift);
      continue;
    }
    for (int32_t f = 0; f < s.k; ++f) {
      const T e = exp_difference(x[f * step_x], top);
      y[f * step_y] = e;
      sum += e;
    }
    const T share = static_cast<T>(1.0 / sum);
    for (int32_t f = 0; f < s.k; ++f) y[f * step_y] *= share;
  }
}

template <typename T, bool kOnePoint>
__device__ void run_step(const View<T, kOnePoint>& v, const Step& s, const int32_t* list,
                         const T* c) {
  switch (s.kind) {
    case Kind::kCombine: return combine(v, s, list, c);
    case Kind::kLinear: return linear(v, s);
    case Kind::kUnary:
      return with_unary<T>(static_cast<cpu::Unary>(s.function), s.a, s.b, [&](auto f) {
        for (int32_t r = v.group; r < s.m; r += v.groups)
          v.out(s.out + r) = f(v.read(resident::row_after(s.x, r)));
      });
    case Kind::kBinary:
      return with_binary<T>(static_cast<cpu::Binary>(s.function), [&](auto f) {
        for (int32_t r = v.group; r < s.m; r += v.groups) {
          const T z = f(v.read(resident::row_after(s.x, r)), v.read(resident::row_after(s.y, r)));
          v.out(s.out + r) = s.relu != 0 ? relu(z) : z;
        }
      });
    case Kind::kLayerNorm: return layer_norm(v, s);
    case Kind::kSoftmax: return softmax(v, s);
    case Kind::kGather:
      for (int32_t r = v.group; r < s.m; r += v.groups) {
        const int32_t from = list[s.index + r];
        v.out(s.out + r) = from == resident::kFill ? static_cast<T>(s.a) : v.read(from);
      }
      return;
    case Kind::kExpand:
      for (int32_t r = v.group; r < s.m; r += v.groups)
        v.out(s.out + r) = v.weight(s.weight + list[s.index + r]);
      return;
  }
}

// Packed weight i of a point: theta + sum_j c_j d_j in the order of j, or the point's own.
template <typename T>
__device__ T point_weight(const Program& program, const ResidentArgs<T>& a, int64_t point,
                          int32_t i) {
  const T* c = a.coordinates + point * program.directions;
  if (program.free_points != 0) {
    const int32_t from = a.list[i];
    return from >= 0 ? c[from] : a.base[i];
  }
  T w = a.base[i];
  for (int32_t j = 0; j < program.directions; ++j)
    w += c[j] * a.directions[static_cast<int64_t>(j) * program.weights + i];
  return w;
}

// Block: tile blockIdx.x % tiles, and `chunk` points from (blockIdx.x / tiles) * chunk on.
template <typename T, bool kOnePoint>
__global__ void __launch_bounds__(resident::kMaxThreads, kBlocks)
    resident_network(const __grid_constant__ Program program,
                     const __grid_constant__ ResidentArgs<T> a, int64_t chunk) {
  const int32_t points = kOnePoint ? 1 : program.points, columns = program.columns;
  const int32_t column = static_cast<int32_t>(threadIdx.x) % columns;
  const int32_t tiles = kOnePoint ? (program.samples + columns - 1) / columns : 1;
  const int32_t tile = static_cast<int32_t>(blockIdx.x % tiles);
  // Of few samples, column = own point * samples + sample; columns beyond them idle, on the last.
  const int32_t used = kOnePoint ? columns : points * program.samples;
  const int32_t busy = column < used ? column : used - 1;
  const int32_t own = kOnePoint ? 0 : busy / program.samples;
  const int64_t place = kOnePoint ? int64_t{tile} * columns + column : busy % program.samples;
  const bool counts = kOnePoint ? place < program.samples : column < used;
  const int64_t sample = place < program.samples ? place : program.samples - 1;

  T* weights = reinterpret_cast<T*>(dynamic_shared());
  T* arena = reinterpret_cast<T*>(
      dynamic_shared() + resident::weight_bytes(program.weights, points, sizeof(T)));
  double* terms = nullptr;  // (2, columns)
  if constexpr (!kOnePoint)
    terms = reinterpret_cast<double*>(
        dynamic_shared() + resident::weight_bytes(program.weights, points, sizeof(T)) +
        resident::round_up_16(int64_t{program.arena_rows} * columns * int64_t{sizeof(T)}));
  const View<T, kOnePoint> v{arena + column, a.external + sample, weights + own,
                             program.samples, columns, points,
                             static_cast<int>(threadIdx.x) / columns, program.groups};
  const DeviceTargets targets{a.index, a.dense, program.samples};

  const int64_t begin = blockIdx.x / tiles * chunk;
  const int64_t end = begin + chunk < a.g ? begin + chunk : a.g;
  for (int64_t first = begin; first < end; first += points) {
    __syncthreads();  // the last points' weights and terms are read
    for (int32_t e = static_cast<int32_t>(threadIdx.x); e < program.weights * points;
         e += static_cast<int32_t>(blockDim.x)) {
      const int64_t at = first + (kOnePoint ? 0 : e % points);
      weights[e] = point_weight(program, a, at < end ? at : end - 1, kOnePoint ? e : e / points);
    }
    __syncthreads();
    const int64_t point = first + own < end ? first + own : end - 1;
    const bool mine = counts && first + own < end && v.group == 0;
    const T* c = a.coordinates + point * program.directions;
    for (int32_t i = 0; i < program.steps; ++i) {
      run_step(v, program.step[i], a.list, c);
      if (v.groups > 1) __syncthreads();
    }
    const auto output = [&](int64_t f) {
      return v.read(resident::row_after(program.output, static_cast<int32_t>(f)));
    };
    if (a.outputs != nullptr && mine)
      for (int32_t f = 0; f < program.features; ++f)
        a.outputs[(point * program.samples + sample) * program.features + f] = output(f);
    if constexpr (kOnePoint) {
      if (v.group == 0) {  // whole warps
        Terms sum;
        if (mine) sum = column_terms(program.loss, targets, sample, a.hits, output);
        sum = warp_sum(sum);
        const int64_t part = (int64_t{tile} * columns + column) / resident::kWarp;
        if (column % resident::kWarp == 0 && part < program.parts()) {
          double* to = a.parts + 2 * (point * program.parts() + part);
          to[0] = sum.loss, to[1] = sum.hits;
        }
      }
    } else {
      Terms sum;
      if (mine) sum = column_terms(program.loss, targets, sample, a.hits, output);
      terms[column] = sum.loss, terms[columns + column] = sum.hits;
      __syncthreads();
      const int64_t at = first + threadIdx.x;
      if (static_cast<int32_t>(threadIdx.x) < points && at < end) {
        Terms total;
        for (int32_t s = 0; s < program.samples; ++s) {
          const int32_t from = static_cast<int32_t>(threadIdx.x) * program.samples + s;
          total.loss += terms[from], total.hits += terms[columns + from];
        }
        a.parts[2 * at] = total.loss, a.parts[2 * at + 1] = total.hits;
      }
    }
  }
}

// A warp for each point.
__global__ void __launch_bounds__(resident::kMaxThreads)
    add_parts(int64_t g, int64_t count, const double* parts, double* result) {
  const int64_t point =
      (int64_t{blockIdx.x} * resident::kMaxThreads + threadIdx.x) / resident::kWarp;
  if (point >= g) return;  // the whole warp
  Terms sum;
  for (int64_t i = threadIdx.x % resident::kWarp; i < count; i += resident::kWarp) {
    const double* from = parts + 2 * (point * count + i);
    sum.loss += from[0], sum.hits += from[1];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % resident::kWarp == 0) result[point] = sum.loss, result[g + point] = sum.hits;
}

template <typename T, bool kOnePoint>
cudaError_t run(const Program& program, const ResidentArgs<T>& args, int64_t blocks,
                cudaStream_t stream) {
  const int64_t shared = resident::shared_bytes(program.weights, program.points,
                                                program.arena_rows, program.columns, sizeof(T));
  const auto kernel = &resident_network<T, kOnePoint>;
  const cudaError_t error = allow_shared(kernel);
  if (error != cudaSuccess) return error;
  // Points that a block takes in turn: what it reads of its tile stays in the cache meanwhile.
  const int64_t tiles = program.tiles(), points = program.points;
  const int64_t wanted = blocks / tiles > 1 ? blocks / tiles : 1;
  const int64_t chunk = ((args.g + wanted - 1) / wanted + points - 1) / points * points;
  const int64_t chunks = (args.g + chunk - 1) / chunk;
  launch(kernel, static_cast<unsigned>(tiles * chunks), static_cast<unsigned>(program.threads()),
         static_cast<size_t>(shared), stream, program, args, chunk);
  return cudaGetLastError();
}

}  // namespace

template <typename T>
cudaError_t resident_losses(const Program& program, const ResidentArgs<T>& args, int64_t blocks,
                            cudaStream_t stream) {
  if (args.g == 0) return cudaSuccess;
  return program.points > 1 ? run<T, false>(program, args, blocks, stream)
                            : run<T, true>(program, args, blocks, stream);
}

cudaError_t sum_parts(int64_t g, int64_t count, const double* parts, double* result,
                      cudaStream_t stream) {
  if (g == 0) return cudaSuccess;
  constexpr int64_t kPoints = resident::kMaxThreads / resident::kWarp;
  launch(&add_parts, static_cast<unsigned>((g + kPoints - 1) / kPoints), resident::kMaxThreads, 0,
         stream, g, count, parts, result);
  return cudaGetLastError();
}

template cudaError_t resident_losses(const Program&, const ResidentArgs<float>&, int64_t,
                                     cudaStream_t);
template cudaError_t resident_losses(const Program&, const ResidentArgs<double>&, int64_t,
                                     cudaStream_t);

}  // namespace pylandscape::cuda
