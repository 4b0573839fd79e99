#include "directions/directions.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>

#include "cpu/directions.h"
#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kChunk = kDirectionChunk;

// What a worker does in one go.
struct Task {
  enum Kind : int {
    kWhole,    // segments first .. last - 1, adjacent and together within a chunk
    kMeasure,  // elements first .. last - 1 of a large segment: draw, sums
    kScale,    // the same, once all of the large segment is measured
    kPlain,    // elements first .. last - 1 where no norm is asked for
    kZero,     // elements that belong to no segment
  } kind;
  int64_t first, last;
  int64_t large = 0, chunk = 0;  // kMeasure, kScale
};

// A segment (jointly: all of them) that is measured chunk by chunk.
struct Large {
  int64_t first_chunk, chunks = 0;
  double factor = 0;
  std::atomic<int64_t> to_measure{0};
  std::atomic<bool> ready{false};  // factor is set
  explicit Large(int64_t first) : first_chunk(first) {}
};

template <typename T>
class Maker {
 public:
  explicit Maker(const DirectionArgs<T>& args)
      : a_(args),
        kernels_(cpu::direction_kernels<T>()),
        draws_(args.direction == nullptr) {
    plan();
  }

  void run(const Parallel& parallel) {
    Items(static_cast<int64_t>(tasks_.size()), parallel, {}).run([&](int, int64_t item) {
      apply(tasks_[item]);
    });
  }

 private:
  void plan() {
    int64_t done = 0;  // elements below are planned
    for (int64_t s = 0; s < a_.count;) {
      const int64_t begin = a_.segments[2 * s], end = a_.segments[2 * s + 1];
      add(Task::kZero, done, begin);
      done = end;
      if (!a_.mode.has_norm()) {
        add(Task::kPlain, begin, end);
        ++s;
      } else if (a_.mode.joint || end - begin > kChunk) {
        if (!a_.mode.joint || large_.empty()) large_.emplace_back(chunks_);
        add(Task::kMeasure, begin, end);
        if (!a_.mode.joint) scale_last();
        ++s;
      } else {
        const int64_t first = s++;
        for (; s < a_.count && a_.segments[2 * s] == done &&
               a_.segments[2 * s + 1] - begin <= kChunk; ++s)
          done = a_.segments[2 * s + 1];
        tasks_.push_back({Task::kWhole, first, s});
      }
    }
    add(Task::kZero, done, a_.n);
    if (a_.mode.joint && !large_.empty()) scale_last();
    sums_.resize(2 * chunks_);
  }

  // Tasks for elements begin .. end - 1, chunk by chunk.
  void add(Task::Kind kind, int64_t begin, int64_t end) {
    for (; begin < end; begin += kChunk) {
      tasks_.push_back({kind, begin, std::min(end, begin + kChunk)});
      if (kind != Task::kMeasure) continue;
      tasks_.back().large = static_cast<int64_t>(large_.size()) - 1;
      tasks_.back().chunk = chunks_++;
    }
  }

  // Scales what the last large segment measures, backwards: the end is still in the cache.
  void scale_last() {
    Large& large = large_.back();
    large.chunks = chunks_ - large.first_chunk;
    large.to_measure = large.chunks;
    for (int64_t i = static_cast<int64_t>(tasks_.size()) - 1, left = large.chunks; left > 0; --i) {
      if (tasks_[i].kind != Task::kMeasure) continue;
      Task task = tasks_[i];
      task.kind = Task::kScale;
      tasks_.push_back(task);
      --left;
    }
  }

  void apply(const Task& task) {
    switch (task.kind) {
      case Task::kWhole: return whole(task);
      case Task::kMeasure: return measure(task);
      case Task::kScale: return scale(task);
      case Task::kPlain: return plain(task);
      case Task::kZero: std::fill(a_.out + task.first, a_.out + task.last, T(0));
    }
  }

  // The unscaled direction from element `begin` on: given, or drawn to out, where it is then scaled.
  const T* raw(int64_t begin, int64_t n) const {
    if (!draws_) return a_.direction + begin;
    kernels_.draw(a_.seed, a_.stream, begin, n, a_.out + begin,
                  a_.mode.target == Target::kNone ? nullptr : a_.theta + begin);
    return a_.out + begin;
  }

  void whole(const Task& task) const {
    const int64_t start = a_.segments[2 * task.first], end = a_.segments[2 * task.last - 1];
    const T* d = raw(start, end - start);
    for (int64_t s = task.first; s < task.last; ++s) {
      const int64_t begin = a_.segments[2 * s], n = a_.segments[2 * s + 1] - begin;
      double sums[2];
      kernels_.squares(n, d + (begin - start), a_.theta + begin, sums);
      const double f = factor(a_.mode.target, sums[0], sums[1]);
      kernels_.scale(n, static_cast<T>(f), d + (begin - start), a_.out + begin);
    }
  }

  void measure(const Task& task) {
    const int64_t n = task.last - task.first;
    kernels_.squares(n, raw(task.first, n), a_.theta + task.first, &sums_[2 * task.chunk]);
    Large& large = large_[task.large];
    if (large.to_measure.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    double d2 = 0, theta2 = 0;  // chunk by chunk, in order
    for (int64_t c = large.first_chunk; c < large.first_chunk + large.chunks; ++c)
      d2 += sums_[2 * c], theta2 += sums_[2 * c + 1];
    large.factor = factor(a_.mode.target, d2, theta2);
    large.ready.store(true, std::memory_order_release);
  }

  // Tasks are handed out in order and measuring never waits, so what is waited for is under way.
  void scale(const Task& task) const {
    const Large& large = large_[task.large];
    while (!large.ready.load(std::memory_order_acquire)) std::this_thread::yield();
    const T* d = (draws_ ? a_.out : a_.direction) + task.first;
    kernels_.scale(task.last - task.first, static_cast<T>(large.factor), d, a_.out + task.first);
  }

  void plain(const Task& task) const {
    const int64_t n = task.last - task.first;
    T* out = a_.out + task.first;
    const T* d = raw(task.first, n);
    if (a_.mode.target == Target::kElementwise)
      kernels_.multiply(n, d, a_.theta + task.first, out);
    else if (d != out)
      std::copy_n(d, n, out);
  }

  const DirectionArgs<T>& a_;
  const cpu::DirectionKernels<T>& kernels_;
  const bool draws_;
  std::vector<Task> tasks_;
  std::deque<Large> large_;
  int64_t chunks_ = 0;
  std::vector<double> sums_;  // (chunks, 2): |d|^2, |theta|^2
};

}  // namespace

template <typename T>
void make_direction(const DirectionArgs<T>& args, const Parallel& parallel) {
  check_segments(args.n, args.segments, args.count);
  Maker<T>(args).run(parallel);
}

template void make_direction(const DirectionArgs<float>&, const Parallel&);
template void make_direction(const DirectionArgs<double>&, const Parallel&);

}  // namespace pylandscape
