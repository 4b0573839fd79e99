// A team (a warp, or a block) takes one batch of one point's directions through all samples. A
// tile's phases: values and adjoints, a thread each sample; tangents and their adjoints, a thread
// each sample and direction; sums over samples, a thread each tile of entries.
#include "cuda/hessians.h"

#include "cuda/hessian_tangents.cuh"
#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

using hessian::Batch;
using hessian::Entries;
using hessian::Item;
using hessian::kGroup;
using hessian::kOnes;
using hessian::kWarp;
using hessian::Layout;
using hessian::Round;
using hessian::Tangent;

template <typename T>
__device__ T entry(const int32_t* list, int32_t table, int32_t number) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0, "tables are integers");
  return reinterpret_cast<const T*>(list + table)[number];
}

template <bool kOneWarp>
struct Team {
  static constexpr int kWide = kOneWarp ? hessian::kWarpWide : hessian::kWide;
  static constexpr int kNarrow = hessian::kNarrow;
  const Program& p;
  const HessianArgs& a;
  const Layout& at;
  int32_t base;  // of its shared memory
  int32_t thread, threads;

  __device__ double& memory(int32_t i) const { return shared_number(base + i); }
  __device__ Pair pair(int32_t i) const { return shared_pair(base + i); }

  __device__ void sync() const {
    if constexpr (kOneWarp) __syncwarp();
    else __syncthreads();
  }

  __device__ Column column(int32_t c, int32_t sample) const {
    const int32_t own = base + sample, wide = base + c;
    Column found{p, a.list, base + at.source, {}, {}, {}, {}, {}, {}, {}, p.first};
    found.v = {own + at.values, at.stride};
    found.d = {own + at.adjoints - p.first * at.stride, at.stride};
    found.slope = {own + at.slopes, at.stride};
    found.curve = {own + at.curves, at.stride};
    found.kept = {own + at.kept, at.stride};
    found.rv = {wide + at.tangents + (1 - p.first) * at.wide_stride, at.wide_stride};
    found.rd = {wide + at.adjoint_tangents - p.first * at.wide_stride, at.wide_stride};
    return found;
  }

  // Parameters and constants; zeros; whether the point is finite, and whether it has NaN: flags.
  __device__ void begin(int64_t point) const {
    const double* theta = a.points + point * p.n;
    bool bad = false, unknown = false;
    for (int32_t i = thread; i < p.source; i += threads) {
      const double v = i < p.n ? theta[i] : a.constants[i - p.n];
      memory(at.source + i) = v;
      if (i < p.n) bad = bad || !isfinite(v), unknown = unknown || isnan(v);
    }
    for (int32_t i = thread; i < p.buffer; i += threads) memory(at.buffer + i) = 0;
    for (int32_t i = thread; i < p.n; i += threads) memory(at.gradient + i) = 0;
    for (int32_t i = thread; i < at.stride; i += threads) memory(at.values + i) = 1;
    for (int32_t i = thread; p.tangents > 0 && i < at.wide_stride; i += threads)
      memory(at.tangents + i) = 0;
    const int found = (__any_sync(0xffffffffu, bad) ? 1 : 0) +
                      (__any_sync(0xffffffffu, unknown) ? 2 : 0);
    if (thread % kWarp == 0) memory(at.flags + 2 + thread / kWarp) = found;
    if (thread == 0) memory(at.flags) = 0;
  }

  __device__ void load(int32_t first, int32_t count) const {
    const int32_t rows = at.values + at.stride;
    for (int32_t i = thread; i < p.features * p.columns; i += threads) {
      const int32_t f = i / p.columns, s = i % p.columns;
      if (s < count) memory(rows + f * at.stride + s) = a.x[int64_t{f} * p.samples + first + s];
    }
  }

  __device__ static int32_t even(int32_t count) { return (count + 1) / 2 * 2; }

  // Values, loss terms, adjoints of `count` samples from `first` on.
  __device__ void values(int32_t first, int32_t count) const {
    const DeviceTargets targets{a.index, a.dense, p.samples};
    for (int32_t s = thread; s < even(count); s += threads) {
      const Column c = column(s, s);
      if (s == count) {  // nothing, to make pairs
        for (int32_t r = 1; r < p.rows; ++r) c.v(r) = 0;
        for (int32_t r = p.first; r < p.rows; ++r) c.d(r) = 0;
        continue;
      }
      memory(at.terms + s) = forward(c, targets, int64_t{first} + s);
      reverse(c, targets, int64_t{first} + s);
    }
  }

  __device__ void add_losses(int32_t count) const {
    if (thread != 0) return;
    double total = memory(at.flags);
    for (int32_t group = 0; group < count; group += kGroup) {
      const int32_t end = group + kGroup < count ? group + kGroup : count;
      double sum = 0;
      for (int32_t s = group; s < end; ++s) sum += memory(at.terms + s);
      total += sum;
    }
    memory(at.flags) = total;
  }

  // Offset of row `row` of the values, with `first + i` of the inputs of a row of s; ones beyond.
  __device__ int32_t input_row(const Step& s, int32_t x, int32_t i) const {
    return i < s.inputs ? x + i : kOnes;
  }

  __device__ void add_gradient(int32_t count) const {
    for (int32_t i = thread; i < p.items; i += threads) {
      const Item item = entry<Item>(a.list, p.item_table, i);
      const Step& s = p.step[item.step];
      const int32_t end = s.columns - item.first < kNarrow ? s.columns : item.first + kNarrow;
      for (int32_t q = item.first; q < end; ++q) {
        double& to = memory(at.gradient + item.place + q - item.first);
        double total = to;
        for (int32_t group = 0; group < count; group += kGroup) {
          const int32_t last = group + kGroup < count ? group + kGroup : count;
          double sum = 0;
          for (int32_t o = 0; o < s.outer; ++o) {
            const int32_t x = at.values + input_row(s, s.x + o * s.k, q) * at.stride;
            const int32_t d = at.adjoints + (item.row + o * s.m - p.first) * at.stride;
            for (int32_t t = group; t < last; ++t) sum += memory(d + t) * memory(x + t);
          }
          total += sum;
        }
        to = total;
      }
    }
  }

  // The passes of `number` directions from tangent `first` on.
  __device__ void tangents(int32_t first, int32_t number, int32_t count) const {
    const Tangent lowest = entry<Tangent>(a.list, p.tangent_table, first);
    for (int32_t c = thread; c < number * at.each; c += threads) {
      const int32_t t = c / at.each, sample = c % at.each;
      if (sample >= even(count)) continue;
      Column found = column(c, sample);
      found.low = p.step[lowest.step].out;
      if (sample == count) {
        for (int32_t r = found.low; r < p.rows; ++r) found.rv(r) = found.rd(r) = 0;
        continue;
      }
      const Tangent own = entry<Tangent>(a.list, p.tangent_table, first + t);
      tangent_forward(found, lowest.step, own.step, own.row);
      tangent_reverse(found, own.step);
    }
  }

  // buffer[j, q] += sum over samples of x_j (R d x_q + d R x_q): kWide inputs j of the direction's
  // row, kNarrow inputs q of a row of a step from there on.
  __device__ void add_entries(int32_t first, int32_t number, int32_t count) const {
    const Tangent lowest = entry<Tangent>(a.list, p.tangent_table, first);
    const int32_t skipped = p.step[lowest.step].item, items = p.items - skipped;
    for (int32_t i = thread; i < number * items; i += threads) {
      const int32_t t = i / items;
      const Item item = entry<Item>(a.list, p.item_table, skipped + i % items);
      const Tangent own = entry<Tangent>(a.list, p.tangent_table, first + t);
      const Step &s = p.step[item.step], &from = p.step[own.step];
      const bool same = item.step == own.step;
      // Of two rows of one step, the pair is met once.
      if (item.step < own.step || (same && item.row - s.out < (own.row - s.out) % s.m)) continue;
      const int32_t low = p.step[lowest.step].out, width = (p.n - from.place) | 1;
      for (int32_t j0 = 0; j0 < from.columns; j0 += kWide) {
        double sum[kWide][kNarrow] = {};
        int32_t left[kWide];
#pragma unroll
        for (int j = 0; j < kWide; ++j)
          left[j] = at.values + input_row(from, own.x, j0 + j) * at.stride;
        for (int32_t o = 0; o < s.outer; ++o) {
          int32_t x[kNarrow], rx[kNarrow];
#pragma unroll
          for (int q = 0; q < kNarrow; ++q) {
            const int32_t row = input_row(s, s.x + o * s.k, item.first + q);
            x[q] = at.values + row * at.stride;
            rx[q] = at.tangents + (row >= low ? row - p.first + 1 : 0) * at.wide_stride +
                    t * at.each;
          }
          const int32_t own_row = item.row + o * s.m - p.first;
          const int32_t d = at.adjoints + own_row * at.stride;
          const int32_t rd =
              at.adjoint_tangents + own_row * at.wide_stride + t * at.each;
          for (int32_t k = 0; k < count; k += 2) {  // in the order of the samples
            Pair right[kNarrow];
            const Pair slope = pair(d + k), bent = pair(rd + k);
#pragma unroll
            for (int q = 0; q < kNarrow; ++q) {
              const Pair value = pair(x[q] + k), tangent = pair(rx[q] + k);
              right[q].a = bent.a * value.a + slope.a * tangent.a;
              right[q].b = bent.b * value.b + slope.b * tangent.b;
            }
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
              const Pair value = pair(left[j] + k);
#pragma unroll
              for (int q = 0; q < kNarrow; ++q) {
                sum[j][q] += value.a * right[q].a;
                sum[j][q] += value.b * right[q].b;
              }
            }
          }
        }
        const int32_t to = at.buffer + own.at + j0 * width + item.place - from.place;
#pragma unroll
        for (int j = 0; j < kWide; ++j)
#pragma unroll
          for (int q = 0; q < kNarrow; ++q)
            if (j0 + j < from.columns && item.first + q < s.columns)
              memory(to + j * width + q) += sum[j][q];
      }
    }
  }

  // Each pair of the batch to its two places.
  __device__ void write(int64_t point, const Batch& batch, double scale, bool fine) const {
    double* const to = a.hessians + point * p.n * p.n;
    const int32_t* const parameter = a.list + p.parameter_table;
    const auto row_of = [&](int32_t r) {
      return entry<Entries>(a.list, p.row_table, batch.rows + r);
    };
    const auto value = [&](int32_t at_row, int32_t place) {
      const double v = memory(at.buffer + at_row + place);
      return fine ? scale * v : NAN;
    };
    int32_t lowest = p.n;
    for (int32_t r = 0; r < batch.row_count; ++r) {
      const Entries row = row_of(r);
      lowest = row.place < lowest ? row.place : lowest;
      double* const line = to + int64_t{parameter[row.place]} * p.n;
      for (int32_t c = row.place + thread; c < p.n; c += threads) line[parameter[c]] = value(row.at, c);
    }
    for (int32_t e = thread; e < (p.n - lowest) * batch.row_count; e += threads) {
      const int32_t c = lowest + e / batch.row_count;
      const Entries row = row_of(e % batch.row_count);
      if (c > row.place) to[int64_t{parameter[c]} * p.n + parameter[row.place]] = value(row.at, c);
    }
  }

  __device__ void run(int64_t point, int32_t number) const {
    const Batch batch = entry<Batch>(a.list, p.batch_table, number);
    begin(point);
    for (int32_t first = 0; first < p.samples; first += p.columns) {
      const int32_t left = p.samples - first, count = left < p.columns ? left : p.columns;
      sync();
      load(first, count);
      sync();
      values(first, count);
      sync();
      add_losses(count);
      if (number == 0) add_gradient(count);
      for (int32_t r = batch.first; r < batch.first + batch.count; ++r) {
        const Round round = entry<Round>(a.list, p.round_table, r);
        tangents(round.first, round.count, count);
        sync();
        add_entries(round.first, round.count, count);
        sync();
      }
    }
    sync();
    const double loss = memory(at.flags) / a.denominator, scale = 1.0 / a.denominator;
    bool bad = !isfinite(loss), unknown = false;
    for (int32_t w = 0; w < threads / kWarp; ++w) {
      const int found = static_cast<int>(memory(at.flags + 2 + w));
      bad = bad || (found & 1) != 0, unknown = unknown || (found & 2) != 0;
    }
    if (number == 0) {
      if (thread == 0) a.losses[point] = unknown ? NAN : loss;
      for (int32_t i = thread; i < p.n; i += threads)
        a.gradients[point * p.n + a.list[p.parameter_table + i]] =
            bad ? NAN : scale * memory(at.gradient + i);
    }
    if (p.tangents > 0) write(point, batch, scale, !bad);
  }
};

// Team: batch number % batches of point number / batches.
template <bool kOneWarp>
__global__ void __launch_bounds__(hessian::kMaxThreads, 2)
    hessians(const __grid_constant__ Program program, const __grid_constant__ Layout at,
             const __grid_constant__ HessianArgs a) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t own = kOneWarp ? thread / kWarp : 0;
  const int64_t number = int64_t{blockIdx.x} * program.points + own;
  if (number >= a.g * program.batches) return;  // the whole team
  const Team<kOneWarp> team{program, a, at, own * at.total, kOneWarp ? thread % kWarp : thread,
                            program.threads};
  if constexpr (kOneWarp) team.run(number, 0);  // one batch
  else team.run(number / program.batches, static_cast<int32_t>(number % program.batches));
}

template <bool kOneWarp>
cudaError_t run(const Program& program, const HessianArgs& args, cudaStream_t stream) {
  const Layout layout(program);  // a parameter: its numbers take no registers
  static_assert(sizeof(program) + sizeof(layout) + sizeof(args) <= 4000, "kernels' parameters");
  const int64_t shared = int64_t{sizeof(double)} * layout.total * program.points;
  const auto kernel = &hessians<kOneWarp>;
  const cudaError_t error = allow_shared(kernel);
  if (error != cudaSuccess) return error;
  const int64_t teams = args.g * program.batches;
  const int64_t blocks = (teams + program.points - 1) / program.points;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  launch(kernel, static_cast<unsigned>(blocks),
         static_cast<unsigned>(program.threads * program.points), static_cast<size_t>(shared),
         stream, program, layout, args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t point_hessians(const Program& program, const HessianArgs& args, cudaStream_t stream) {
  if (args.g == 0) return cudaSuccess;
  return program.points > 1 ? run<true>(program, args, stream) : run<false>(program, args, stream);
}

}  // namespace pylandscape::cuda
