#include "points/points.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "program/items.h"

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

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

void require(bool ok, const char* reason) {
  if (!ok) throw std::invalid_argument(reason);
}

}  // namespace

Points::Points(const Program<double>& program)
    : program_(program),
      kernels_(program.kernels_),
      points_(cpu::point_kernels()),
      lanes_(points_.lanes),
      n_(program.n_) {
  require(!program.mixes(), "statistics of the batch");
  const int64_t source = n_ + static_cast<int64_t>(program.constants_.size());
  require(source * lanes_ * int64_t{sizeof(double)} <= kSourceBytes, "too many parameters");
  lower();
  check_untied();
  plan();
}

int64_t Points::place(int use) const {
  if (use < 0) return -1;
  const int64_t source = program_.uses_[use].source;
  return source >= 0 ? source : n_ - 1 - source;
}

int Points::add_slot(int64_t features) {
  features_.push_back(features);
  return static_cast<int>(features_.size()) - 1;
}

// The value of a parameter in every sample; row f is element index[f].
int Points::expand(int use, const std::vector<int64_t>& index) {
  Step step(OpKind::kExpand, nullptr, {}, add_slot(static_cast<int64_t>(index.size())));
  step.weight = place(use), step.weight_moves = program_.uses_[use].source >= 0;
  step.index = index;
  steps_.push_back(step);
  return step.output;
}

// The gain and the shift of what stands in `slot`, and the relu after them; index: the element of
// each row.
void Points::lower_norm(const Op& op, int slot, int gain, int shift, std::vector<int64_t> index) {
  for (const int use : {gain, shift}) {
    if (use < 0) continue;
    Step step(OpKind::kBinary, &op, {slot, expand(use, index)}, -1);
    step.binary = use == gain ? cpu::Binary::kMul : cpu::Binary::kAdd;
    slot = step.output = add_slot(features_[slot]);
    steps_.push_back(step);
  }
  steps_.back().relu = op.relu;
  steps_.back().output = op.output;  // the last one writes where the op does
}

void Points::lower() {
  const Program<double>& p = program_;
  features_ = p.slots_;
  output_ = p.output_;
  for (const Op& op : p.ops_) {
    Step step(op.kind, &op, op.inputs, op.output);
    step.relu = op.relu;
    switch (op.kind) {
      case OpKind::kLinear: {
        const bool transposed = p.uses_[op.weight].transposed();
        step.row = transposed ? 1 : op.k, step.column = transposed ? op.m : 1;
        step.weight = place(op.weight), step.bias = place(op.bias);
        step.weight_moves = p.uses_[op.weight].source >= 0;
        step.bias_moves = op.bias >= 0 && p.uses_[op.bias].source >= 0;
        break;
      }
      case OpKind::kExpand:
        step.weight = place(op.weight), step.weight_moves = p.uses_[op.weight].source >= 0;
        step.index = op.index;
        break;
      case OpKind::kLayerNorm:
      case OpKind::kGroupNorm: {
        if (op.weight < 0 && op.bias < 0) break;
        const int64_t rows = p.slots_[op.output];
        const int64_t size = op.kind == OpKind::kGroupNorm ? rows / op.inner : op.k;
        std::vector<int64_t> index(rows);
        for (int64_t f = 0; f < rows; ++f) index[f] = f % size;
        step.relu = false, step.output = add_slot(rows);
        steps_.push_back(step);
        lower_norm(op, step.output, op.weight, op.bias, std::move(index));
        continue;
      }
      case OpKind::kBatchNorm: {
        require(!op.norm.own && p.uses_[op.norm.mean].source < 0 &&
                    p.uses_[op.norm.variance].source < 0,
                "batch norm whose statistics move");
        const double* constants = p.constants_.data();
        const double* mean = constants - 1 - p.uses_[op.norm.mean].source;
        const double* variance = constants - 1 - p.uses_[op.norm.variance].source;
        for (int64_t c = 0; c < op.k; ++c) {
          const double inverse = 1 / std::sqrt(variance[c] + op.norm.eps);
          step.scale.push_back(inverse), step.shift.push_back(-mean[c] * inverse);
        }
        if (op.norm.gain < 0 && op.norm.shift < 0) break;
        std::vector<int64_t> index(p.slots_[op.output]);
        for (size_t f = 0; f < index.size(); ++f) index[f] = static_cast<int64_t>(f) % op.k;
        step.relu = false, step.output = add_slot(p.slots_[op.output]);
        steps_.push_back(step);
        lower_norm(op, step.output, op.norm.gain, op.norm.shift, std::move(index));
        continue;
      }
      case OpKind::kUnary: case OpKind::kBinary: case OpKind::kSoftmax: case OpKind::kConcat:
      case OpKind::kGather: case OpKind::kPool: case OpKind::kMatmul: break;
      case OpKind::kConv: throw std::invalid_argument("convolutions");
      case OpKind::kEmbedding: case OpKind::kLookup: throw std::invalid_argument("embeddings");
      case OpKind::kCell: throw std::invalid_argument("recurrent cells");
      case OpKind::kDropout: throw std::invalid_argument("dropout");
    }
    step.binary = op.binary;
    steps_.push_back(step);
  }
}

int64_t Points::columns(const Step& step) const {
  if (step.kind == OpKind::kExpand) return step.weight_moves ? 1 : 0;
  return (step.weight_moves ? step.op->k : 0) + (step.bias_moves ? 1 : 0);
}

int64_t Points::parameter(const Step& step, int64_t row, int64_t column) const {
  if (step.kind == OpKind::kExpand) return step.weight + step.index[row];
  const int64_t r = row % step.op->m;
  if (!step.weight_moves || column == step.op->k) return step.bias + r;
  return step.weight + r * step.row + column * step.column;
}

// Rows of one key share their parameters.
int64_t Points::key(const Step& step, int64_t row) const {
  return step.kind == OpKind::kExpand ? step.index[row] : row % step.op->m;
}

// A parameter belongs to one op, so that a pair of them meets in one place.
void Points::check_untied() const {
  std::vector<const Step*> owner(n_, nullptr);
  for (const Step& step : steps_) {
    if (step.kind != OpKind::kLinear && step.kind != OpKind::kExpand) continue;
    for (int64_t r = 0; r < features_[step.output]; ++r)
      for (int64_t c = 0; c < columns(step); ++c) {
        const Step*& own = owner[parameter(step, r, c)];
        require(own == nullptr || own == &step, "parameters that several ops read");
        own = &step;
      }
  }
}

void Points::plan() {
  row_.assign(features_.size(), -1), maker_.assign(features_.size(), -1);
  moves_.assign(features_.size(), false);
  rank_.assign(n_, 0);
  int32_t rank = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    Step& step = steps_[i];
    const int64_t features = features_[step.output];
    row_[step.output] = rows_, maker_[step.output] = static_cast<int>(i);
    rows_ += features;
    if (step.kind != OpKind::kLinear && step.kind != OpKind::kExpand)
      step.weight_moves = step.bias_moves = false;
    step.moves = step.has_parameters();
    for (const int x : step.inputs) step.moves = step.moves || moves_[x];
    moves_[step.output] = step.moves;
    if (step.kind == OpKind::kUnary && step.moves) step.bent = bent_rows_, bent_rows_ += features;
    work_ += double(features) * double(step.kind == OpKind::kLinear ? 3 * step.op->k + 8 : 8);
    if (!step.has_parameters()) continue;
    tangents_ += features;
    int64_t keys = 0;
    for (int64_t r = 0; r < features; ++r) {
      keys = std::max(keys, key(step, r) + 1);
      for (int64_t c = 0; c < columns(step); ++c)
        rank_[parameter(step, r, c)] = rank + static_cast<int32_t>(key(step, r));
    }
    rank += static_cast<int32_t>(keys);
    step.reach.assign(features_.size(), false);
    step.reach[step.output] = true;
    for (size_t j = i + 1; j < steps_.size(); ++j)
      for (const int x : steps_[j].inputs)
        if (step.reach[x]) step.reach[steps_[j].output] = true;
  }
  work_ *= double(program_.samples_);
  const int64_t vector = lanes_ * int64_t{sizeof(double)};
  able_ = n_ * n_ * vector <= kHessianBytes;
  const int64_t sample = (4 * rows_ + 2 * bent_rows_ + features_[0]) * vector;
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
    w.x = Buffer<double>(features_[0] * cols);
    if (program_.index_.size() > 0) w.index = Buffer<int32_t>(program_.target_rows_ * cols);
    if (program_.dense_.size() > 0) w.dense = Buffer<double>(program_.target_rows_ * cols);
    w.rows.values = Buffer<double>(rows_ * cols), w.rows.adjoints = Buffer<double>(rows_ * cols);
    w.rows.first = Buffer<double>(bent_rows_ * cols);
    w.rows.curved = Buffer<double>(bent_rows_ * cols);
    w.ones = Buffer<double>(cols), w.zeros = Buffer<double>(cols), w.terms = Buffer<double>(cols);
    std::fill_n(w.ones.data(), cols, 1.0);
    int64_t widest = 0;
    for (const Step& step : steps_)
      if (step.kind == OpKind::kBinary && step.binary == cpu::Binary::kDiv)
        widest = std::max(widest, features_[step.output]);
    w.unused = Buffer<double>(widest * cols);
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
  return Items(groups, pool, stop).run([&](int id, int64_t item) {
    const int64_t first = item * lanes_;
    const auto from = [&](double* p, int64_t size) {
      return p == nullptr ? nullptr : p + first * size;
    };
    Worker& worker = ready(*workers_[id], second);
    group(std::min(lanes_, count - first), points + first * n_, denominator, losses + first,
          from(gradients, n_), from(hessians, n_ * n_), from(eigenvalues, n_), worker);
  });
}

// The last point stands in for those that are missing.
void Points::load_points(int64_t count, const double* points, Worker& w) const {
  for (int64_t l = 0; l < lanes_; ++l) {
    const double* from = points + std::min(l, count - 1) * n_;
    for (int64_t i = 0; i < n_; ++i) w.source.data()[i * lanes_ + l] = from[i];
  }
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
    for (int64_t f = 0; f < features_[0]; ++f)
      std::fill_n(w.x.data() + f * b.cols + s * lanes_, lanes_,
                  p.x_.data()[tile * features_[0] * p.tile_ + f * stride + column]);
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
    if ((gradients == nullptr && !second) || !moves_[output_]) continue;
    reverse(b, w);
    if (gradients != nullptr)
      for (const Step& step : steps_)
        if (step.has_parameters()) gradient_add(step, b, w);
    for (size_t i = 0; second && i < steps_.size(); ++i)
      for (int64_t r = 0; steps_[i].has_parameters() && r < features_[steps_[i].output]; ++r) {
        tangent_forward(i, r, b, w);
        tangent_reverse(i, r, b, w);
      }
  }
  const double scale = 1.0 / denominator;
  bool finite[64];
  for (int64_t l = 0; l < count; ++l) {
    const double* point = points + l * n_;
    losses[l] = w.loss.data()[l] / denominator;
    finite[l] = std::isfinite(losses[l]) &&
                std::all_of(point, point + n_, [](double v) { return std::isfinite(v); });
    if (!std::all_of(point, point + n_, [](double v) { return !std::isnan(v); })) losses[l] = kNaN;
  }
  if (gradients != nullptr) write(count, n_, scale, w.gradient.data(), finite, gradients);
  if (!second) return;
  points_.mirror(n_, rank_.data(), w.hessian.data());
  if (hessians != nullptr) write(count, n_ * n_, scale, w.hessian.data(), finite, hessians);
  if (eigenvalues == nullptr) return;
  if (!w.eigen) w.eigen.emplace(n_);
  w.eigen->from_lanes(w.hessian.data(), count, eigenvalues);
  for (int64_t l = 0; l < count; ++l)
    for (int64_t i = 0; i < n_; ++i)
      eigenvalues[l * n_ + i] = finite[l] ? scale * eigenvalues[l * n_ + i] : kNaN;
}

}  // namespace pylandscape
