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

constexpr int64_t kGradientBytes = 64 << 10;  // of a block, where there are no Hessians
constexpr int64_t kDataBytes = 256 << 10;     // of all samples' data and targets, to be kept as lanes
constexpr int64_t kPairedOrder = 128;

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
  find_adjoints();
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
  const int64_t moved = (2 * rows_ + 2 * bent_rows_ + slots_.features[0] + program_.target_rows_) * vector;
  const int64_t fit = std::max<int64_t>(kGradientBytes / moved, 8), parts = (samples + fit - 1) / fit;
  gradient_block_ = std::min((((samples + parts - 1) / parts) + 3) / 4 * 4, block_);
}

// Which adjoints a product writes whole, and which relus it takes in.
void Points::find_adjoints() {
  std::vector<int> readers(slots_.features.size(), 0);
  for (const Step& step : steps_)
    for (const int x : step.op.inputs) ++readers[x];
  slots_.whole.assign(slots_.features.size(), false);
  slots_.whole[output_] = true;  // the loss writes it
  for (Step& step : steps_) {
    if (!step.is_product()) continue;
    const int x = step.op.inputs[0];
    const bool all = step.first == 0 && step.op.outer * step.k == slots_.features[x];
    if (!all || readers[x] != 1 || x == output_ || !slots_.moves[x]) continue;
    step.alone = slots_.whole[x] = true;
    Step& maker = steps_[slots_.maker[x]];
    step.masks = maker.masked = maker.op.relu;
  }
}

bool Points::holds_all() const {
  const int64_t rows = slots_.features[0] + program_.target_rows_;
  return rows * program_.samples_ * lanes_ * int64_t{sizeof(double)} <= kDataBytes;
}

Points::Worker& Points::ready(Worker& w, bool hessian) const {
  const int64_t cols = block_ * lanes_;
  if (w.source.size() == 0) {
    const auto& constants = program_.constants_;
    w.source = Buffer<double>((n_ + static_cast<int64_t>(constants.size())) * lanes_);
    for (size_t c = 0; c < constants.size(); ++c)
      std::fill_n(w.source.data() + (n_ + static_cast<int64_t>(c)) * lanes_, lanes_, constants[c]);
    const int64_t held = holds_all() ? std::max(program_.samples_ * lanes_, cols) : cols;
    w.x = Buffer<double>(slots_.features[0] * held);
    if (program_.index_.size() > 0) w.index = Buffer<int32_t>(program_.target_rows_ * held);
    if (program_.dense_.size() > 0) w.dense = Buffer<double>(program_.target_rows_ * held);
    w.data = w.x.data(), w.indices = w.index.data(), w.targets = w.dense.data();
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

// For `groups` vectors of points, each worth some passes of a gradient; with its workers.
const Parallel& Points::pool_of(int64_t groups, double passes, const Parallel& parallel) {
  const double work = work_ * double(groups) * passes * double(lanes_);
  const Parallel& pool = groups < 2 || work < kParallelWork ? here_ : parallel;
  while (workers_.size() < static_cast<size_t>(pool.workers))
    workers_.push_back(std::make_unique<Worker>());
  return pool;
}

bool Points::run(int64_t count, const double* points, double denominator, double* losses,
                 double* gradients, double* hessians, double* eigenvalues,
                 const Parallel& parallel, const ShouldStop& stop) {
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const bool second = hessians != nullptr || eigenvalues != nullptr;
  if (second && !able_) throw std::invalid_argument("Points: Hessians of too many parameters");
  const int64_t groups = (count + lanes_ - 1) / lanes_;
  const Parallel& pool = pool_of(groups, second ? double(1 + tangents_) : 1.0, parallel);
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

// rows (count, n), `step` elements apart, as lanes (n, lanes); the last one stands in for those that are
// missing.
void Points::load_rows(int64_t count, const double* rows, int64_t step, double* to) const {
  const double* from[kMostLanes];
  for (int64_t l = 0; l < lanes_; ++l) from[l] = rows + std::min(l, count - 1) * step;
  kernels_.to_lanes(n_, from, to);
}

// Block `number` of blocks of `size` samples.
void Points::load_block(int64_t number, int64_t size, const Block& b, Worker& w) const {
  const bool all = holds_all();
  if (w.loaded_block != size) {
    w.loaded = -1, w.loaded_block = size;
    for (int64_t first = 0; all && first < program_.samples_; first += size) {
      const int64_t samples = std::min(size, program_.samples_ - first);
      fill_block({first, samples, samples * lanes_}, first, w);
    }
  }
  const int64_t before = (all ? b.first : 0) * lanes_;
  w.data = w.x.data() + slots_.features[0] * before;
  if (w.index.size() > 0) w.indices = w.index.data() + program_.target_rows_ * before;
  if (w.dense.size() > 0) w.targets = w.dense.data() + program_.target_rows_ * before;
  if (all || w.loaded == number) return;
  w.loaded = number;
  fill_block(b, 0, w);
}

// Its data, behind those of `before` samples.
void Points::fill_block(const Block& b, int64_t before, Worker& w) const {
  const Program<double>& p = program_;
  const int64_t features = slots_.features[0];
  double* x = w.x.data() + features * before * lanes_;
  int64_t tile = std::upper_bound(p.tile_first_.begin(), p.tile_first_.end(), b.first) -
                 p.tile_first_.begin() - 1;
  for (int64_t s = 0; s < b.samples; ++s) {
    while (p.tile_first_[tile + 1] <= b.first + s) ++tile;
    const int64_t column = b.first + s - p.tile_first_[tile], stride = p.padded_columns(tile);
    for (int64_t f = 0; f < features; ++f)
      std::fill_n(x + f * b.cols + s * lanes_, lanes_,
                  p.x_.data()[tile * features * p.tile_ + f * stride + column]);
    for (int64_t f = 0; f < p.target_rows_; ++f) {
      const int64_t from = tile * p.target_rows_ * p.tile_ + f * stride + column;
      const int64_t to = p.target_rows_ * before * lanes_ + f * b.cols + s * lanes_;
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

// losses (count,), `step` elements apart, at the parameters in `source`; and whether they and these are
// finite.
void Points::finish_losses(int64_t count, double denominator, const Worker& w, double* losses,
                           int64_t step, bool* finite) const {
  const double* source = w.source.data();
  double beyond[kMostLanes] = {};  // NaN where a parameter is not finite
  for (int64_t i = 0; i < n_; ++i)
    for (int64_t l = 0; l < lanes_; ++l) beyond[l] += 0.0 * source[i * lanes_ + l];
  for (int64_t l = 0; l < count; ++l) {
    double& loss = losses[l * step];
    loss = w.loss.data()[l] / denominator;
    finite[l] = std::isfinite(loss) && beyond[l] == 0.0;
    if (beyond[l] == 0.0) continue;
    for (int64_t i = 0; i < n_; ++i)
      if (std::isnan(source[i * lanes_ + l])) loss = kNaN;
  }
}

// Sums over the samples, in blocks of `size`, of the losses and of their first and second derivatives at
// the parameters in `source`.
void Points::sums(int64_t size, bool gradient, bool second, Worker& w) const {
  std::fill_n(w.loss.data(), lanes_, 0.0);
  if (gradient) std::fill_n(w.gradient.data(), n_ * lanes_, 0.0);
  if (second) std::fill_n(w.hessian.data(), n_ * n_ * lanes_, 0.0);
  for (int64_t first = 0, number = 0; first < program_.samples_; first += size, ++number) {
    const int64_t samples = std::min(size, program_.samples_ - first);
    const Block b{first, samples, samples * lanes_};
    load_block(number, size, b, w);
    forward(b, w);
    kernels_.loss(program_.loss_, targets(w), b.cols, value(w, b, output_), w.terms.data(), nullptr);
    points_.sum_add(samples, w.terms.data(), w.loss.data());
    if ((!gradient && !second) || !slots_.moves[output_]) continue;
    reverse(b, w);
    for (size_t i = 0; gradient && i < steps_.size(); ++i)
      if (steps_[i].has_parameters()) gradient_add(steps_[i], b, w);
    for (size_t i = 0; second && i < steps_.size(); ++i)
      for (int64_t r = 0; steps_[i].has_parameters() && r < slots_.features[steps_[i].op.output]; ++r) {
        tangent_forward(i, r, b, w);
        tangent_reverse(i, r, b, w);
      }
  }
}

void Points::group(int64_t count, const double* points, double denominator, double* losses,
                   double* gradients, double* hessians, double* eigenvalues, Worker& w) const {
  const bool second = hessians != nullptr || eigenvalues != nullptr;
  load_rows(count, points, n_, w.source.data());
  sums(second ? block_ : gradient_block_, gradients != nullptr, second, w);
  const double scale = 1.0 / denominator;
  bool finite[kMostLanes];
  finish_losses(count, denominator, w, losses, 1, finite);
  if (gradients != nullptr) write(count, n_, scale, w.gradient.data(), finite, gradients);
  if (!second) return;
  if (hessians != nullptr || !ordered_) points_.mirror(n_, rank_.data(), w.hessian.data());
  if (hessians != nullptr) write(count, n_ * n_, scale, w.hessian.data(), finite, hessians);
  if (eigenvalues == nullptr) return;
  if (!w.eigen) w.eigen.emplace(n_);
  w.eigen->take_lanes(w.hessian.data(), count, scale, finite, eigenvalues);
}

}  // namespace pylandscape
