#include "points/points.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "program/items.h"
#include "program/ops/entry.h"

namespace pylandscape {
namespace {

constexpr int64_t kBlockBytes = 512 << 10;  // of a block of samples' rows
// The same where a worker's Hessians take more than kSmallHessians: larger blocks pass over them less
// often.
constexpr int64_t kLargeBlockBytes = 1 << 20;
constexpr int64_t kSmallHessians = 512 << 10;
constexpr int64_t kHessianBytes = int64_t{64} << 20;  // of one worker's Hessians at most
constexpr int64_t kSourceBytes = int64_t{4} << 20;    // of one worker's parameters at most
constexpr double kParallelWork = 2e6;                 // multiplications worth another thread

constexpr int64_t kPairedOrder = 128;
constexpr int64_t kMostLanes = 64;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Points::Points(const Program<double>& program)
    : program_(program),
      kernels_(program.kernels_),
      points_(cpu::point_kernels()),
      lanes_(points_.lanes),
      n_(program.n_) {
  PointLowering::require(!program.mixes(), "statistics of the batch");
  const int64_t source = n_ + static_cast<int64_t>(program.constants_.size());
  PointLowering::require(source * lanes_ * int64_t{sizeof(double)} <= kSourceBytes,
                         "too many parameters");
  lower();
  check_untied();
  plan();
}

void Points::lower() {
  slots_.features = program_.slots_;
  output_ = program_.output_;
  PointLowering to(program_, program_.constants_, steps_, slots_.features);
  for (const Op& op : program_.ops_) {
    const PointPasses& passes = entry(op.kind).points;
    if (passes.refusal != nullptr) throw std::invalid_argument(passes.refusal);
    passes.lower(to, op);
  }
  for (Step& step : steps_) step.passes = &entry(step.op.kind).points;
}

// A parameter belongs to one op, so that a pair of them meets in one place.
void Points::check_untied() const {
  std::vector<const Step*> owner(n_, nullptr);
  for (const Step& step : steps_) {
    for (size_t r = 0; r < step.key.size(); ++r)
      for (int64_t c = 0; c < step.columns(); ++c) {
        const Step*& own = owner[step.parameter(r, c)];
        PointLowering::require(own == nullptr || own == &step, "parameters that several ops read");
        own = &step;
      }
  }
}

void Points::plan() {
  const size_t slots = slots_.features.size();
  slots_.row.assign(slots, -1), slots_.maker.assign(slots, -1), slots_.moves.assign(slots, false);
  rank_.assign(n_, 0);
  int32_t rank = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    Step& step = steps_[i];
    const int output = step.op.output;
    const int64_t features = slots_.features[output];
    slots_.row[output] = rows_, slots_.maker[output] = static_cast<int>(i);
    rows_ += features;
    step.moves = step.has_parameters();
    for (const int x : step.op.inputs) step.moves = step.moves || slots_.moves[x];
    slots_.moves[output] = step.moves;
    if (entry(step.op.kind).curves && step.moves) step.bent = bent_rows_, bent_rows_ += features;
    work_ += double(features) * double(3 * step.k + 8);
    if (!step.has_parameters()) continue;
    tangents_ += features;
    int64_t keys = 0;
    for (int64_t r = 0; r < features; ++r) {
      keys = std::max(keys, step.key[r] + 1);
      for (int64_t c = 0; c < step.columns(); ++c)
        rank_[step.parameter(r, c)] = rank + static_cast<int32_t>(step.key[r]);
    }
    rank += static_cast<int32_t>(keys);
    step.places.resize(keys * step.columns());
    for (int64_t r = 0; r < features; ++r)
      for (int64_t c = 0; c < step.columns(); ++c)
        step.places[step.key[r] * step.columns() + c] = step.parameter(r, c) * lanes_;
    step.reach.assign(slots, false);
    step.reach[output] = true;
    for (size_t j = i + 1; j < steps_.size(); ++j)
      for (const int x : steps_[j].op.inputs)
        if (step.reach[x]) step.reach[steps_[j].op.output] = true;
  }
  ordered_ = std::is_sorted(rank_.begin(), rank_.end());
  work_ *= double(program_.samples_);
  const int64_t vector = lanes_ * int64_t{sizeof(double)};
  able_ = n_ * n_ * vector <= kHessianBytes;
  const int64_t sample = (4 * rows_ + 2 * bent_rows_ + slots_.features[0]) * vector;
  const bool small = n_ * n_ * vector <= kSmallHessians;
  const int64_t samples = program_.samples_;
  const int64_t most =
      std::max<int64_t>((small ? kBlockBytes : kLargeBlockBytes) / std::max<int64_t>(sample, 1) / 4 * 4, 4);
  const int64_t blocks = (samples + most - 1) / most;
  block_ = std::min((((samples + blocks - 1) / blocks) + 3) / 4 * 4, samples);
}

Points::Worker& Points::ready(Worker& w, bool hessian) const {
  const int64_t cols = block_ * lanes_;
  if (w.source.size() == 0) {
    const auto& constants = program_.constants_;
    w.source = Buffer<double>((n_ + static_cast<int64_t>(constants.size())) * lanes_);
    for (size_t c = 0; c < constants.size(); ++c)
      std::fill_n(w.source.data() + (n_ + static_cast<int64_t>(c)) * lanes_, lanes_, constants[c]);
    w.x = Buffer<double>(slots_.features[0] * cols);
    if (program_.index_.size() > 0) w.index = Buffer<int32_t>(program_.target_rows_ * cols);
    if (program_.dense_.size() > 0) w.dense = Buffer<double>(program_.target_rows_ * cols);
    w.rows.values = Buffer<double>(rows_ * cols), w.rows.adjoints = Buffer<double>(rows_ * cols);
    w.rows.first = Buffer<double>(bent_rows_ * cols);
    w.rows.curved = Buffer<double>(bent_rows_ * cols);
    w.ones = Buffer<double>(cols), w.zeros = Buffer<double>(cols), w.terms = Buffer<double>(cols);
    std::fill_n(w.ones.data(), cols, 1.0);
    w.loss = Buffer<double>(lanes_), w.gradient = Buffer<double>(n_ * lanes_);
  }
  if (hessian && w.hessian.size() == 0) {
    w.hessian = Buffer<double>(n_ * n_ * lanes_);
    w.rows.tangents = Buffer<double>(rows_ * cols);
    w.rows.adjoint_tangents = Buffer<double>(rows_ * cols);
    w.scratch = Buffer<double>(4 * cols);
  }
  return w;
}

bool Points::run(int64_t count, const double* points, double denominator, double* losses,
                 double* gradients, double* hessians, double* eigenvalues,
                 const Parallel& parallel, const ShouldStop& stop) {
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const bool second = hessians != nullptr || eigenvalues != nullptr;
  if (second && !able_) throw std::invalid_argument("Points: Hessians of too many parameters");
  const int64_t groups = (count + lanes_ - 1) / lanes_;
  const double work = work_ * double(groups) * (second ? double(1 + tangents_) : 1.0);
  const Parallel here{1, [](const std::function<void(int)>& body) { body(0); }};
  const Parallel& pool = groups < 2 || work * double(lanes_) < kParallelWork ? here : parallel;
  while (workers_.size() < static_cast<size_t>(pool.workers))
    workers_.push_back(std::make_unique<Worker>());
  // Eigenvalues are found of two vectors of points at a time, where that takes a while.
  const int64_t each = eigenvalues != nullptr && n_ <= kPairedOrder ? 2 * lanes_ : lanes_;
  return Items((count + each - 1) / each, pool, stop).run([&](int id, int64_t item) {
    Worker& worker = ready(*workers_[id], second);
    if (worker.eigen) worker.eigen->start();
    const int64_t end = std::min(count, (item + 1) * each);
    for (int64_t first = item * each; first < end; first += lanes_) {
      const auto from = [&](double* p, int64_t size) {
        return p == nullptr ? nullptr : p + first * size;
      };
      group(std::min(lanes_, end - first), points + first * n_, denominator, losses + first,
            from(gradients, n_), from(hessians, n_ * n_), from(eigenvalues, n_), worker);
    }
    if (worker.eigen) worker.eigen->finish();
  });
}

// The last point stands in for those that are missing.
void Points::load_points(int64_t count, const double* points, Worker& w) const {
  const double* rows[kMostLanes];
  for (int64_t l = 0; l < lanes_; ++l) rows[l] = points + std::min(l, count - 1) * n_;
  kernels_.to_lanes(n_, rows, w.source.data());
}

void Points::load_block(int64_t number, const Block& b, Worker& w) const {
  if (w.loaded == number) return;
  w.loaded = number;
  const Program<double>& p = program_;
  int64_t tile = std::upper_bound(p.tile_first_.begin(), p.tile_first_.end(), b.first) -
                 p.tile_first_.begin() - 1;
  for (int64_t s = 0; s < b.samples; ++s) {
    while (p.tile_first_[tile + 1] <= b.first + s) ++tile;
    const int64_t column = b.first + s - p.tile_first_[tile], stride = p.padded_columns(tile);
    for (int64_t f = 0; f < slots_.features[0]; ++f)
      std::fill_n(w.x.data() + f * b.cols + s * lanes_, lanes_,
                  p.x_.data()[tile * slots_.features[0] * p.tile_ + f * stride + column]);
    for (int64_t f = 0; f < p.target_rows_; ++f) {
      const int64_t from = tile * p.target_rows_ * p.tile_ + f * stride + column;
      const int64_t to = f * b.cols + s * lanes_;
      if (w.index.size() > 0) std::fill_n(w.index.data() + to, lanes_, p.index_.data()[from]);
      if (w.dense.size() > 0) std::fill_n(w.dense.data() + to, lanes_, p.dense_.data()[from]);
    }
  }
}

// scale x (size, lanes) -> out (count, size); NaN where the lane is not finite.
void Points::write(int64_t count, int64_t size, double scale, const double* x, const bool* finite,
                   double* out) const {
  if (count == lanes_)
    points_.to_points(size, scale, x, out, size);
  else
    for (int64_t l = 0; l < count; ++l)
      for (int64_t i = 0; i < size; ++i) out[l * size + i] = scale * x[i * lanes_ + l];
  for (int64_t l = 0; l < count; ++l)
    if (!finite[l]) std::fill_n(out + l * size, size, kNaN);
}

void Points::group(int64_t count, const double* points, double denominator, double* losses,
                   double* gradients, double* hessians, double* eigenvalues, Worker& w) const {
  const Program<double>& p = program_;
  const bool second = hessians != nullptr || eigenvalues != nullptr;
  load_points(count, points, w);
  std::fill_n(w.loss.data(), lanes_, 0.0);
  if (gradients != nullptr) std::fill_n(w.gradient.data(), n_ * lanes_, 0.0);
  if (second) std::fill_n(w.hessian.data(), n_ * n_ * lanes_, 0.0);
  for (int64_t first = 0, number = 0; first < p.samples_; first += block_, ++number) {
    const int64_t samples = std::min(block_, p.samples_ - first);
    const Block b{first, samples, samples * lanes_};
    load_block(number, b, w);
    forward(b, w);
    kernels_.loss(p.loss_, targets(w), b.cols, value(w, b, output_), w.terms.data(), nullptr);
    points_.sum_add(samples, w.terms.data(), w.loss.data());
    if ((gradients == nullptr && !second) || !slots_.moves[output_]) continue;
    reverse(b, w);
    if (gradients != nullptr)
      for (const Step& step : steps_)
        if (step.has_parameters()) gradient_add(step, b, w);
    for (size_t i = 0; second && i < steps_.size(); ++i)
      for (int64_t r = 0; steps_[i].has_parameters() && r < slots_.features[steps_[i].op.output]; ++r) {
        tangent_forward(i, r, b, w);
        tangent_reverse(i, r, b, w);
      }
  }
  const double scale = 1.0 / denominator;
  double beyond[kMostLanes] = {};  // NaN where a parameter is not finite
  for (int64_t i = 0; i < n_; ++i)
    for (int64_t l = 0; l < lanes_; ++l) beyond[l] += 0.0 * w.source.data()[i * lanes_ + l];
  bool finite[kMostLanes];
  for (int64_t l = 0; l < count; ++l) {
    const double* point = points + l * n_;
    losses[l] = w.loss.data()[l] / denominator;
    finite[l] = std::isfinite(losses[l]) && beyond[l] == 0.0;
    if (beyond[l] != 0.0 && std::any_of(point, point + n_, [](double v) { return std::isnan(v); }))
      losses[l] = kNaN;
  }
  if (gradients != nullptr) write(count, n_, scale, w.gradient.data(), finite, gradients);
  if (!second) return;
  if (hessians != nullptr || !ordered_) points_.mirror(n_, rank_.data(), w.hessian.data());
  if (hessians != nullptr) write(count, n_ * n_, scale, w.hessian.data(), finite, hessians);
  if (eigenvalues == nullptr) return;
  if (!w.eigen) w.eigen.emplace(n_);
  w.eigen->take_lanes(w.hessian.data(), count, scale, finite, eigenvalues);
}

}  // namespace pylandscape
