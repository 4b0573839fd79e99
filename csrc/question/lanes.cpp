// Questions where the points are vector lanes: few samples and few parameters (Program::lanes).
//
// A column is (sample, point) with vector_length points innermost, and every parameter is a vector
// over the points.
#include <algorithm>

#include "program/items.h"
#include "program/ops/entry.h"
#include "question/question.h"

namespace pylandscape {

// Data and targets with every sample repeated for vector_length points.
template <typename T>
void Question<T>::expand_lanes() {
  const Program<T>& p = program_;
  const int64_t lanes = p.kernels_.vector_length, features = p.slots_[0];
  const int64_t cols = p.samples_ * lanes, stride = p.padded_columns(0);
  lane_x_ = Buffer<T>(features * cols);
  for (int64_t f = 0; f < features; ++f)
    for (int64_t c = 0; c < cols; ++c)
      lane_x_.data()[f * cols + c] = p.x_.data()[f * stride + c / lanes];
  const int64_t rows = p.target_rows_;
  if (p.index_.size() > 0) lane_index_ = Buffer<int32_t>(rows * cols);
  if (p.dense_.size() > 0) lane_dense_ = Buffer<double>(rows * cols);
  for (int64_t f = 0; f < rows; ++f)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t from = f * stride + c / lanes, to = f * cols + c;
      if (lane_index_.size() > 0) lane_index_.data()[to] = p.index_.data()[from];
      if (lane_dense_.size() > 0) lane_dense_.data()[to] = p.dense_.data()[from];
    }
}

// vector_length points at once: every parameter is a vector over the points.
template <typename T>
void Question<T>::run_block(int64_t first, int64_t count, const T* coordinates, Worker& worker,
                            double* loss, double* correct, const SampleLosses* asked) const {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  const int64_t lanes = kernels.vector_length, cols = p.samples_ * lanes;
  const int64_t source = static_cast<int64_t>(source_base_.size());
  T* weights = worker.arena.data();
  double* scratch = worker.scratch.data();
  T* c = weights + source * lanes;
  T* values = c + (points_ ? 0 : k_) * lanes;
  // Lanes beyond the last point repeat it.
  const int64_t width = points_ ? p.n_ : k_;
  T* moved = points_ ? weights : c;
  for (int64_t l = 0; l < lanes; ++l)
    worker.rows[l] = coordinates + (first + std::min(l, count - 1)) * width;
  kernels.to_lanes(width, worker.rows.data(), moved);
  if (!points_) kernels.perturb_lanes(source, k_, source_base_.data(), worker.z.data(), c, weights);
  const auto place = [&](int slot) -> T* { return values + p.place_[slot] * cols; };
  const auto read = [&](int slot) -> const T* { return slot == 0 ? lane_x_.data() : place(slot); };
  const auto parameter = [&](int use) -> const T* {
    const int64_t s = p.uses_[use].source;
    return weights + (s >= 0 ? s : p.n_ - 1 - s) * lanes;
  };
  std::vector<const T*>& slots = worker.slots;
  for (const Op& op : p.fused_) {
    for (const int s : op.inputs) slots[s] = read(s);
    const Parameters<T> at(op, parameter);
    passes<T>(op.kind).call_lanes(
        {op, p, kernels, cols, slots.data(), at, nullptr, place(op.output), worker.room.data()});
  }
  cpu::Targets targets;
  if (lane_index_.size() > 0) targets.index = lane_index_.data();
  if (lane_dense_.size() > 0) targets.dense = lane_dense_.data();
  double* hits = correct != nullptr ? scratch + cols : nullptr;
  kernels.loss(p.loss_, targets, cols, read(p.output_), scratch, hits);
  if (asked != nullptr) tally_block(first, count, scratch, *asked);
  const auto sum_samples = [&](double* terms, double* result) {
    for (int64_t s = 1; s < p.samples_; ++s)
      for (int64_t l = 0; l < lanes; ++l) terms[l] += terms[s * lanes + l];
    std::copy_n(terms, count, result + first);
  };
  sum_samples(scratch, loss);
  if (hits != nullptr) sum_samples(hits, correct);
}

// losses (samples, lanes), of which the first `count` lanes are points.
template <typename T>
void Question<T>::tally_block(int64_t first, int64_t count, const double* losses,
                              const SampleLosses& asked) const {
  const int64_t samples = program_.samples_, lanes = program_.kernels_.vector_length;
  const std::vector<Shares> shares{share_sums(asked.shares, samples)};
  std::vector<double> own(2 * samples);
  double* d = own.data() + samples;
  for (int64_t l = 0; l < count; ++l) {
    const int64_t point = first + l;
    for (int64_t s = 0; s < samples; ++s) own[s] = losses[s * lanes + l];
    if (asked.own != nullptr) std::copy_n(own.data(), samples, asked.own + point * samples);
    const Tally about = tally(own.data(), asked.shares, samples, shares[0].sum,
                              sum_columns(own.data(), samples));
    asked.squares[point] = spread(&about, 1, shares);
    if (asked.references == 0) continue;
    const double sum = subtract_references(asked, asked.weights + point * asked.references, 0,
                                           samples, samples, own.data(), d);
    const Tally apart = tally(d, asked.shares, samples, shares[0].sum, sum);
    asked.differences[point] = spread(&apart, 1, shares);
  }
}

template <typename T>
bool Question<T>::run_lanes(int64_t g, const T* coordinates, double* loss, double* correct,
                            const SampleLosses* asked, const Parallel& parallel,
                            const ShouldStop& stop) const {
  const Program<T>& p = program_;
  const int64_t lanes = p.kernels_.vector_length, cols = p.samples_ * lanes;
  const int64_t per_item = 8 * lanes;
  const int64_t rows = static_cast<int64_t>(source_base_.size()) + (points_ ? 0 : k_);
  std::vector<Worker> workers(parallel.workers);
  return Items((g + per_item - 1) / per_item, parallel, stop).run([&](int id, int64_t item) {
    Worker& worker = workers[id];
    if (worker.scratch.size() == 0) {
      worker.arena = Buffer<T>(rows * lanes + p.arena_rows_ * cols);
      worker.room = make_room();
      worker.scratch = Buffer<double>(2 * cols);
      worker.slots.resize(p.slots_.size());
      worker.rows.resize(lanes);
      for (const auto& direction : source_directions_) worker.z.push_back(direction.data());
      for (size_t i = p.n_; i < source_base_.size(); ++i)  // points leave the constants alone
        std::fill_n(worker.arena.data() + i * lanes, lanes, source_base_[i]);
    }
    const int64_t end = std::min(g, (item + 1) * per_item);
    for (int64_t first = item * per_item; first < end; first += lanes)
      run_block(first, std::min(lanes, end - first), coordinates, worker, loss, correct,
                asked);
  });
}

template class Question<float>;
template class Question<double>;

}  // namespace pylandscape
