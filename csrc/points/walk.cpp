// Walks of Points: a vector of walks takes all of its steps before the next does.
#include "points/walk.h"

#include <cmath>
#include <limits>

#include "points/points.h"
#include "program/items.h"

namespace pylandscape {
namespace {

// Philox4x64-10 (Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3), as
// numpy's generator of that name numbers and reads it: uniform numbers in [0, 1) of 53 bits.
class Uniforms {
 public:
  Uniforms(uint64_t seed, uint64_t stream, bool second) : seed_(seed), stream_(stream), second_(second) {}

  // Row `row` of rows of n numbers, each of which begins at a counter of its own; `to` has room for
  // n rounded up to 4.
  void row(int64_t row, int64_t n, double* to) const {
    const uint64_t counters = static_cast<uint64_t>(n + 3) / 4;
    const uint64_t first = static_cast<uint64_t>(row) * counters + 1;
    for (uint64_t c = 0; c < counters; ++c) four(first + c, to + 4 * c);
  }

 private:
  void four(uint64_t counter, double* to) const {
    uint64_t x0 = counter, x1 = 0, x2 = 0, x3 = second_ ? 1 : 0, k0 = seed_, k1 = stream_;
    for (int round = 0; round < 10; ++round) {
      const auto a = static_cast<unsigned __int128>(x0) * 0xD2E7470EE14C6C93ULL;
      const auto b = static_cast<unsigned __int128>(x2) * 0xCA5A826395121157ULL;
      x0 = static_cast<uint64_t>(b >> 64) ^ x1 ^ k0, x1 = static_cast<uint64_t>(b);
      x2 = static_cast<uint64_t>(a >> 64) ^ x3 ^ k1, x3 = static_cast<uint64_t>(a);
      k0 += 0x9E3779B97F4A7C15ULL, k1 += 0xBB67AE8584CAA73BULL;
    }
    const uint64_t found[] = {x0, x1, x2, x3};
    for (int i = 0; i < 4; ++i) to[i] = static_cast<double>(found[i] >> 11) * 0x1p-53;
  }
  uint64_t seed_, stream_;
  bool second_;
};

}  // namespace

// Lanes (n, lanes) as rows (count, n), `step` elements apart.
void Points::store_rows(int64_t count, const double* from, double* rows, int64_t step) const {
  if (count == lanes_) return points_.to_points(n_, 1.0, from, rows, step);
  for (int64_t l = 0; l < count; ++l)
    for (int64_t i = 0; i < n_; ++i) rows[l * step + i] = from[i * lanes_ + l];
}

// Losses and gradients of walks first .. first + count - 1, whose points are in `source`; the latter stay
// in `gradient`. False where a loss is finite and its gradient is not.
bool Points::evaluate_walks(const WalkArrays& of, int64_t first, int64_t count, int64_t at,
                            double denominator, Worker& w) const {
  sums(gradient_block_, true, false, w);
  bool finite[kMostLanes] = {}, good = true;
  const int64_t place = first * of.steps + at;
  finish_losses(count, denominator, w, of.losses + place, of.steps, finite);
  const double scale = 1.0 / denominator;
  double squares[kMostLanes] = {}, *g = w.gradient.data();
  for (int64_t i = 0; i < n_; ++i)
    for (int64_t l = 0; l < lanes_; ++l) {
      g[i * lanes_ + l] *= scale;
      squares[l] += g[i * lanes_ + l] * g[i * lanes_ + l];
    }
  for (int64_t l = 0; l < count; ++l) {
    of.norms[place + l * of.steps] = std::sqrt(squares[l]);
    if (finite[l] && std::isfinite(squares[l])) continue;
    if (!finite[l]) of.norms[place + l * of.steps] = std::numeric_limits<double>::quiet_NaN();
    for (int64_t i = 0; i < n_; ++i) {
      double& slope = g[i * lanes_ + l];
      if (!finite[l]) slope = std::numeric_limits<double>::quiet_NaN();
      else good = good && std::isfinite(slope);
    }
  }
  return good;
}

// theta_{at} = theta_{at-1} + step, in `source`.
void Points::step_walks(const WalkRule& rule, const WalkArrays& of, int64_t first, int64_t count,
                        int64_t at, Worker& w) const {
  const int64_t padded = (n_ + 3) / 4 * 4, size = n_ * lanes_;
  if (w.uniform.size() == 0)
    w.uniform = Buffer<double>(2 * size), w.draws = Buffer<double>(padded * lanes_);
  const auto draw = [&](bool second, double* to) {
    for (int64_t l = 0; l < count; ++l)
      Uniforms(rule.seed, of.numbers[first + l], second).row(at, n_, w.draws.data() + l * padded);
    load_rows(count, w.draws.data(), padded, to);
  };
  double* coins = nullptr;
  draw(false, w.uniform.data());
  if (rule.tie == 1) draw(true, coins = w.uniform.data() + size);
  points_.walk_step(n_, rule.longest, rule.bound, rule.tie == 2, w.uniform.data(), coins,
                    w.gradient.data(), w.source.data());
}

bool Points::walk(const WalkRule& rule, const WalkArrays& of, int64_t from, int64_t end, bool known,
                  double denominator, bool* lost, const Parallel& parallel, const ShouldStop& stop) {
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const int64_t groups = (of.walks + lanes_ - 1) / lanes_, stride = of.steps * n_;
  const Parallel& pool = pool_of(groups, double(end - from), parallel);
  std::atomic<bool> bad{false};
  const bool done = Items(groups, pool, stop).run([&](int id, int64_t item) {
    Worker& w = ready(*workers_[id], false);
    const int64_t first = item * lanes_, count = std::min(lanes_, of.walks - first);
    double* points = of.points + first * stride;
    load_rows(count, points + from * n_, stride, w.source.data());
    if (known) load_rows(count, of.gradients + first * n_, n_, w.gradient.data());
    bool good = known || evaluate_walks(of, first, count, from, denominator, w);
    for (int64_t t = from + 1; good && t < end; ++t) {
      step_walks(rule, of, first, count, t, w);
      store_rows(count, w.source.data(), points + t * n_, stride);
      good = evaluate_walks(of, first, count, t, denominator, w);
    }
    store_rows(count, w.gradient.data(), of.gradients + first * n_, n_);
    if (!good) bad.store(true);
  });
  *lost = bad.load();
  return done;
}

}  // namespace pylandscape
