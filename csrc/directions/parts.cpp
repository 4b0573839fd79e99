#include "directions/parts.h"

#include <algorithm>
#include <vector>

#include "cpu/directions.h"
#include "directions/directions.h"
#include "program/items.h"

namespace pylandscape {
namespace {

int64_t chunks_of(int64_t begin, int64_t end) {
  return (end - begin + kDirectionChunk - 1) / kDirectionChunk;
}

// What of a sum is worked on at once, with two directions: all of it fits the first-level cache.
constexpr int64_t kSumBlock = 1 << 11, kTogether = 2;
// Elements of a sum from which on they are more than a core's caches keep until they are read.
constexpr int64_t kPast = 1 << 19;

// The elements begin .. end - 1 of a direction, in d. `soon` (end - begin,) or null is fetched into
// the cache meanwhile.
template <typename T>
void draw_part(const Named<T>& of, int64_t begin, int64_t end, const T* theta, T* d,
               const T* soon = nullptr) {
  const auto& kernels = cpu::direction_kernels<T>();
  int64_t low = 0, high = of.count;  // the first segment that ends after begin
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (of.segments[2 * middle + 1] > begin) high = middle;
    else low = middle + 1;
  }
  int64_t done = begin;  // elements below are written
  for (int64_t s = low; s < of.count && of.segments[2 * s] < end;) {
    const int64_t start = std::max(begin, of.segments[2 * s]);
    std::fill(d + (done - begin), d + (start - begin), T(0));
    int64_t last = s + 1, stop = of.segments[2 * s + 1];  // adjacent segments are drawn at once
    for (; last < of.count && of.segments[2 * last] == stop && stop < end; ++last)
      stop = of.segments[2 * last + 1];
    stop = std::min(stop, end);
    kernels.draw(of.seed, of.stream, start, stop - start, d + (start - begin),
                 soon == nullptr ? nullptr : soon + (start - begin));
    if (of.factors != nullptr)
      for (int64_t i = s; i < last; ++i) {
        const int64_t a = std::max(begin, of.segments[2 * i]);
        const int64_t b = std::min(end, of.segments[2 * i + 1]);
        T* own = d + (a - begin);
        if (b > a) kernels.scale(b - a, of.factors[i], own, own);
      }
    if (of.times_theta) {
      T* own = d + (start - begin);
      kernels.multiply(stop - start, own, theta + (start - begin), own);
    }
    s = last, done = std::max(start, stop);
  }
  std::fill(d + (done - begin), d + (end - begin), T(0));
}

}  // namespace

int64_t count_sums(const int64_t* segments, int64_t count) {
  int64_t total = 0;
  for (int64_t s = 0; s < count; ++s) total += chunks_of(segments[2 * s], segments[2 * s + 1]);
  return total;
}

template <typename T>
void measure_part(const T* theta, int64_t first, const int64_t* segments, int64_t count,
                  uint64_t seed, uint64_t stream, double* sums, const Parallel& parallel) {
  struct Task {
    int64_t segment, last, sum;  // segments segment .. last - 1 whole, or a large one's chunks
  };
  std::vector<Task> tasks;
  int64_t sum = 0;
  for (int64_t s = 0; s < count;) {
    const int64_t begin = segments[2 * s];
    int64_t last = s + 1, done = segments[2 * s + 1];
    for (; last < count && segments[2 * last] == done &&
           segments[2 * last + 1] - begin <= kDirectionChunk; ++last)
      done = segments[2 * last + 1];
    tasks.push_back({s, last, sum});
    for (; s < last; ++s) sum += chunks_of(segments[2 * s], segments[2 * s + 1]);
  }
  std::vector<std::vector<T>> drawn(parallel.workers);
  for (auto& each : drawn) each.resize(kDirectionChunk);
  const auto& kernels = cpu::direction_kernels<T>();
  Items(static_cast<int64_t>(tasks.size()), parallel, {}).run([&](int worker, int64_t item) {
    const Task& task = tasks[item];
    T* d = drawn[worker].data();
    double* out = sums + 2 * task.sum;
    const int64_t begin = segments[2 * task.segment], end = segments[2 * task.last - 1];
    if (end - begin <= kDirectionChunk) {
      kernels.draw(seed, stream, begin, end - begin, d, nullptr);
      for (int64_t s = task.segment; s < task.last; ++s) {
        const int64_t a = segments[2 * s], n = segments[2 * s + 1] - a;
        if (n == 0) continue;
        kernels.squares(n, d + (a - begin), theta + (a - first), out);
        out += 2;
      }
      return;
    }
    for (int64_t a = begin; a < end; a += kDirectionChunk, out += 2) {
      const int64_t n = std::min(kDirectionChunk, end - a);
      kernels.draw(seed, stream, a, n, d, nullptr);
      kernels.squares(n, d, theta + (a - first), out);
    }
  });
}

template <typename T>
void write_part(const Named<T>& of, int64_t first, int64_t n, const T* theta, T* out,
                const Parallel& parallel) {
  Items(chunks_of(0, n), parallel, {}).run([&](int, int64_t item) {
    const int64_t begin = item * kDirectionChunk, end = std::min(n, begin + kDirectionChunk);
    draw_part(of, first + begin, first + end, of.times_theta ? theta + begin : nullptr,
              out + begin);
  });
}

template <typename T>
void write_sum(const std::vector<Named<T>>& of, const T* c, int64_t first, int64_t n,
               const T* theta, const T* base, T* out, const Parallel& parallel) {
  const auto& kernels = cpu::direction_kernels<T>();
  const auto perturb = n >= kPast && base != out ? kernels.perturb_past : kernels.perturb;
  std::vector<std::vector<T>> drawn(parallel.workers);
  for (auto& each : drawn) each.resize(kTogether * kSumBlock);
  const int64_t k = static_cast<int64_t>(of.size());
  // Chunks and blocks begin where groups of the draw do, whatever `first` is.
  const int64_t origin = first / kDirectionChunk * kDirectionChunk;
  Items(chunks_of(origin, first + n), parallel, {}).run([&](int worker, int64_t item) {
    T* d = drawn[worker].data();
    const int64_t chunk = origin + item * kDirectionChunk;
    for (int64_t at = chunk; at < chunk + kDirectionChunk; at += kSumBlock) {
      const int64_t begin = std::max(at, first), end = std::min(at + kSumBlock, first + n);
      if (begin >= end) continue;
      const int64_t from = begin - first;  // in base, out and theta
      const T* point = theta == nullptr ? nullptr : theta + from;
      const T* start = base + from;
      for (int64_t j = 0; j < k; j += kTogether) {
        const int64_t together = std::min(kTogether, k - j);
        for (int64_t i = 0; i < together; ++i)
          draw_part(of[j + i], begin, end, point, d + i * kSumBlock, i == 0 ? start : nullptr);
        const bool last = j + together == k;
        (last ? perturb : kernels.perturb)(end - begin, together, kSumBlock, start, c + j, d,
                                           out + from);
        start = out + from;
      }
    }
  });
}

template void measure_part(const float*, int64_t, const int64_t*, int64_t, uint64_t, uint64_t,
                           double*, const Parallel&);
template void measure_part(const double*, int64_t, const int64_t*, int64_t, uint64_t, uint64_t,
                           double*, const Parallel&);
template void write_part(const Named<float>&, int64_t, int64_t, const float*, float*,
                         const Parallel&);
template void write_part(const Named<double>&, int64_t, int64_t, const double*, double*,
                         const Parallel&);
template void write_sum(const std::vector<Named<float>>&, const float*, int64_t, int64_t,
                        const float*, const float*, float*, const Parallel&);
template void write_sum(const std::vector<Named<double>>&, const double*, int64_t, int64_t,
                        const double*, const double*, double*, const Parallel&);

}  // namespace pylandscape
