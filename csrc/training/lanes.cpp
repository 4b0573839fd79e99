#include "training/lanes.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kParallelSteps = 8;  // of a group of runs, that are worth another thread

}  // namespace

LaneTraining::LaneTraining(const Program<double>& program, const Rule& rule, const double* counts)
    : points_(program),
      program_(program),
      rule_(rule),
      batches_(program, counts, 2 * program.kernels().vector_length),
      lanes_(points_.lanes_),
      n_(program.n()) {
  if (n_ > kMost) throw std::invalid_argument("too many parameters");
}

void LaneTraining::ready(Work& w) const {
  points_.ready(w.points, false);
  if (!w.denominators.empty()) return;
  for (int i = 0; i < rule_.slots(); ++i) w.slots.emplace_back(n_ * lanes_);
  if (rule_.two_stages) w.kept = Buffer<double>(n_ * lanes_), w.stage = Buffer<double>(n_ * lanes_);
  w.denominators.resize(lanes_), w.scales.resize(lanes_);
}

// Samples first .. first + samples - 1 of the step; the last run stands in for those that are
// missing.
void LaneTraining::load(const Indices& step, int64_t first_run, int64_t runs, int64_t first,
                        int64_t samples, Work& w) const {
  const int64_t cols = samples * lanes_, rows = batches_.target_rows();
  for (int64_t s = 0; s < samples; ++s)
    for (int64_t l = 0; l < lanes_; ++l) {
      const int64_t run = first_run + std::min(l, runs - 1), at = s * lanes_ + l;
      const int64_t sample = step.of(run)[first + s];
      const double* x = batches_.row(sample);
      for (int64_t f = 0; f < batches_.features(); ++f) w.points.x.data()[f * cols + at] = x[f];
      if (const int32_t* index = batches_.index(sample))
        for (int64_t f = 0; f < rows; ++f) w.points.index.data()[f * cols + at] = index[f];
      if (const double* dense = batches_.dense(sample))
        for (int64_t f = 0; f < rows; ++f) w.points.dense.data()[f * cols + at] = dense[f];
    }
}

// Sums of the loss terms and of their gradients, lane by lane.
void LaneTraining::gradient(const Indices& step, int64_t first_run, int64_t runs, Work& w) const {
  Points::Worker& p = w.points;
  std::fill_n(p.loss.data(), lanes_, 0.0);
  std::fill_n(p.gradient.data(), n_ * lanes_, 0.0);
  for (int64_t first = 0; first < step.size; first += points_.block_) {
    const int64_t samples = std::min(points_.block_, step.size - first);
    const Points::Block block{0, samples, samples * lanes_};
    const bool whole = samples == step.size && !step.own;
    if (!whole || w.loaded != step.samples || w.loaded_size != step.size)
      load(step, first_run, runs, first, samples, w);
    w.loaded = whole ? step.samples : nullptr, w.loaded_size = step.size;
    points_.forward(block, p);
    points_.kernels_.loss(program_.loss_, points_.targets(p), block.cols,
                          points_.value(p, block, points_.output_), p.terms.data(), nullptr);
    points_.points_.sum_add(samples, p.terms.data(), p.loss.data());
    if (!points_.slots_.moves[points_.output_]) continue;
    points_.reverse(block, p);
    for (const Points::Step& s : points_.steps_)
      if (s.has_parameters()) points_.gradient_add(s, block, p);
  }
}

void LaneTraining::step(const Indices& step, int64_t first_run, int64_t runs, int64_t number,
                        double rate, double* losses, int64_t stride, Work& w) const {
  double *theta = w.points.source.data(), *sums = w.points.gradient.data();
  for (int64_t l = 0; l < lanes_; ++l) {
    if (l > 0 && !step.own) {
      w.denominators[l] = w.denominators[0], w.scales[l] = w.scales[0];
      continue;
    }
    const int64_t* samples = step.of(first_run + std::min(l, runs - 1));
    w.denominators[l] = batches_.denominator(step.size, samples);
    w.scales[l] = batches_.scale(w.denominators[l], step.size, samples);
  }
  const auto each = [&](auto f) {
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t l = 0; l < lanes_; ++l) f(i * lanes_ + l, l);
  };
  gradient(step, first_run, runs, w);
  for (int64_t l = 0; l < runs; ++l)
    losses[l * stride] = w.points.loss.data()[l] / w.denominators[l];
  if (rule_.two_stages) {
    double *kept = w.kept.data(), *stage = w.stage.data();
    std::copy_n(theta, n_ * lanes_, kept), std::copy_n(sums, n_ * lanes_, stage);
    each([&](int64_t i, int64_t l) { theta[i] -= rule_.q1 * rate * w.scales[l] * sums[i]; });
    gradient(step, first_run, runs, w);
    std::copy_n(kept, n_ * lanes_, theta);
    each([&](int64_t i, int64_t) { sums[i] = rule_.a1 * stage[i] + rule_.a2 * sums[i]; });
  }
  if (rule_.clip >= 0) {
    std::vector<double> squares(lanes_);
    each([&](int64_t i, int64_t l) { squares[l] += sums[i] * sums[i]; });
    for (int64_t l = 0; l < lanes_; ++l) {
      const double factor = rule_.clip / (w.scales[l] * std::sqrt(squares[l]) + 1e-6);
      if (!(factor >= 1)) w.scales[l] *= factor;
    }
  }
  double scale = w.scales[0];
  if (step.own || rule_.clip >= 0) {
    each([&](int64_t i, int64_t l) { sums[i] *= w.scales[l]; });
    scale = 1;
  }
  double* slots[2] = {};
  for (size_t i = 0; i < w.slots.size(); ++i) slots[i] = w.slots[i].data();
  points_.kernels_.optimise(rule_.at(number, rate), n_ * lanes_, scale, sums, theta, slots);
}

bool LaneTraining::advance(const Runs<double>& runs, const std::vector<Indices>& steps,
                           const double* rates, double* losses, const Parallel& parallel,
                           const ShouldStop& stop) {
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const int64_t groups = (runs.count + lanes_ - 1) / lanes_;
  const int64_t count = static_cast<int64_t>(steps.size());
  const Parallel here{1, [](const std::function<void(int)>& body) { body(0); }};
  const Parallel& pool = groups < 2 || groups * count < kParallelSteps ? here : parallel;
  while (works_.size() < static_cast<size_t>(pool.workers))
    works_.push_back(std::make_unique<Work>());
  for (const auto& work : works_) work->loaded = nullptr;
  Items items(groups, pool, stop);
  return items.run([&](int worker, int64_t group) {
    Work& w = *works_[worker];
    ready(w);
    const int64_t first = group * lanes_, here = std::min(lanes_, runs.count - first);
    const auto lanes_from = [&](const double* rows, double* to) {
      for (int64_t l = 0; l < lanes_; ++l)
        for (int64_t i = 0; i < n_; ++i)
          to[i * lanes_ + l] = rows[(first + std::min(l, here - 1)) * n_ + i];
    };
    const auto lanes_to = [&](const double* from, double* rows) {
      for (int64_t l = 0; l < here; ++l)
        for (int64_t i = 0; i < n_; ++i) rows[(first + l) * n_ + i] = from[i * lanes_ + l];
    };
    lanes_from(runs.theta, w.points.source.data());
    for (size_t i = 0; i < runs.slots.size(); ++i) lanes_from(runs.slots[i], w.slots[i].data());
    for (int64_t s = 0; s < count && !items.stopping(); ++s)
      step(steps[s], first, here, runs.done + s, rates[s], losses + first * count + s, count, w);
    lanes_to(w.points.source.data(), runs.theta);
    for (size_t i = 0; i < runs.slots.size(); ++i) lanes_to(w.slots[i].data(), runs.slots[i]);
  });
}

}  // namespace pylandscape
