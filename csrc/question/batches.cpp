// Questions to programs with batch norm of the batch's own statistics.
//
// Such statistics couple all samples of a batch, so a (point, batch) is run over all of its tiles up
// to the next such op, and on from there once the tiles' moments are known. Moments are double, and
// combined in the order of the tiles. A (point, batch) is one worker's; where they are fewer than the
// workers, or would take too much memory together, the workers share its tiles instead. Both give the
// same bits. Memory: the live values of one batch, for each worker or once.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "program/items.h"
#include "question/question.h"

namespace pylandscape {
namespace {

constexpr int64_t kBatchBytes = int64_t{1} << 30;  // live values of the batches in flight

}  // namespace

// Mean and sum of squared deviations of tiles first .. last - 1 together (Chan et al. 1983).
template <typename T>
void Question<T>::moments(const Op& op, int64_t first, int64_t last, Batch& memory) const {
  memory.mean.assign(op.k, 0.0), memory.variance.assign(op.k, 0.0);
  double count = 0;
  for (int64_t t = first; t < last; ++t) {
    const double* mean = memory.moments.data() + (t - first) * 2 * op.k;
    const double more = static_cast<double>(program_.tile_columns(t) * op.outer);
    for (int64_t c = 0; c < op.k; ++c) {
      const double step = mean[c] - memory.mean[c];
      memory.mean[c] += step * (more / (count + more));
      memory.variance[c] += mean[op.k + c] + step * step * (count * (more / (count + more)));
    }
    count += more;
  }
}

// Scale, then shift of every channel, from the moments of `count` elements.
template <typename T>
std::vector<T> Question<T>::own_affine(const Op& op, const T* weights, const Batch& memory,
                                       double count) const {
  const T *gain = use_data(op.norm.gain, weights), *shift = use_data(op.norm.shift, weights);
  std::vector<T> affine(2 * op.k);
  for (int64_t c = 0; c < op.k; ++c) {
    const double scale = (gain != nullptr ? double(gain[c]) : 1.0) /
                         std::sqrt(memory.variance[c] / count + op.norm.eps);
    affine[c] = static_cast<T>(scale);
    affine[op.k + c] =
        static_cast<T>((shift != nullptr ? double(shift[c]) : 0.0) - memory.mean[c] * scale);
  }
  return affine;
}

// kept (2 * kept_channels_,): mean and unbiased variance of each op that keeps them; the run ends
// with the last of them. Without it: sums (tiles, 2), the tiles' losses and hits.
template <typename T>
bool Question<T>::run_batch(int64_t batch, const T* c, const T* weights,
                            std::vector<Worker>& workers, Batch& memory, const EachTile& each,
                            double* kept, double* sums, T* outputs) const {
  const Program<T>& p = program_;
  const int64_t begin = p.batch_tile_[batch], end = p.batch_tile_[batch + 1];
  const int64_t stride = std::max<int64_t>(1, p.arena_rows_) * p.tile_;
  if (memory.arena.size() == 0) memory.arena = Buffer<T>(p.most_batch_tiles() * stride);
  const auto samples = static_cast<double>(p.tile_first_[end] - p.tile_first_[begin]);
  int64_t left = kept_channels_;
  std::vector<T> affine;
  for (size_t part = 0; part <= own_.size(); ++part) {
    const Op* before = part > 0 ? &p.fused_[own_[part - 1]] : nullptr;
    const Op* next = part < own_.size() ? &p.fused_[own_[part]] : nullptr;
    const size_t first = part > 0 ? own_[part - 1] + 1 : 0;
    const size_t last = next != nullptr ? own_[part] : p.fused_.size();
    if (next != nullptr) memory.moments.resize((end - begin) * 2 * next->k);
    const bool done = each(end - begin, [&](int id, int64_t tile) {
      Worker& worker = workers[id];
      if (worker.scratch.size() == 0) {
        worker.room = make_room();
        worker.scratch = Buffer<double>(3 * p.tile_);
      }
      const int64_t t = begin + tile, cols = p.padded_columns(t);
      T* arena = memory.arena.data() + tile * stride;
      find_slots(t, arena, worker);
      if (before != nullptr)
        p.kernels_.channel_affine(before->outer, before->k, cols, affine.data(),
                                  affine.data() + before->k, before->relu,
                                  worker.slots[before->inputs[0]],
                                  arena + p.place_[before->output] * p.tile_);
      run_ops(first, last, t, c, weights, arena, worker);
      if (next != nullptr) {
        double* mean = memory.moments.data() + tile * 2 * next->k;
        p.kernels_.channel_moments(next->outer, next->k, cols, p.tile_columns(t),
                                   worker.slots[next->inputs[0]], mean, mean + next->k);
      } else {
        finish_tile(t, worker, sums + 2 * t, sums + 2 * t + 1, outputs, {});
      }
    });
    if (!done) return false;
    if (next == nullptr) break;
    moments(*next, begin, end, memory);
    const double count = samples * static_cast<double>(next->outer);
    if (kept != nullptr && next->norm.keep_mean >= 0) {
      kept = std::copy_n(memory.mean.data(), next->k, kept);
      for (int64_t k = 0; k < next->k; ++k) *kept++ = memory.variance[k] / (count - 1);
      left -= next->k;
      if (left == 0) break;
    }
    affine = own_affine(*next, weights, memory, count);
  }
  return true;
}

// kept (batches, 2 * kept_channels_) of one point; a layer that runs several times counts each time.
template <typename T>
void Question<T>::average(const double* kept, T* point) const {
  const Program<T>& p = program_;
  const auto batches = static_cast<int64_t>(p.batches_.size());
  const auto keeps = [&](size_t op) { return p.fused_[op].norm.keep_mean; };
  for (size_t i = 0; i < own_.size(); ++i) {
    const Op& op = p.fused_[own_[i]];
    if (keeps(own_[i]) < 0) continue;
    std::vector<double> sums(2 * op.k, 0.0);
    double count = 0;
    for (int64_t b = 0; b < batches; ++b) {
      const double* from = kept + b * 2 * kept_channels_;
      for (const size_t other : own_) {
        if (keeps(other) < 0) continue;
        if (keeps(other) == op.norm.keep_mean) {
          for (int64_t c = 0; c < 2 * op.k; ++c) sums[c] += from[c];
          count += 1;
        }
        from += 2 * p.fused_[other].k;
      }
    }
    for (int64_t c = 0; c < op.k; ++c) {
      point[op.norm.keep_mean + c] = static_cast<T>(sums[c] / count);
      point[op.norm.keep_variance + c] = static_cast<T>(sums[op.k + c] / count);
    }
  }
}

// Losses, or with `points` the statistics of the points.
template <typename T>
bool Question<T>::run_batches(int64_t g, const T* coordinates, double* loss, double* correct,
                              T* outputs, T* points, const Parallel& parallel,
                              const ShouldStop& stop) const {
  const Program<T>& p = program_;
  const int64_t width = points_ ? p.n_ : k_;
  const auto batches = static_cast<int64_t>(p.batches_.size());
  const int64_t bytes =
      p.most_batch_tiles() * p.arena_rows_ * p.tile_ * static_cast<int64_t>(sizeof(T));
  std::vector<Worker> workers(parallel.workers);
  std::vector<Batch> memory(parallel.workers);
  std::vector<double> sums, kept;
  return run_groups(g, coordinates, parallel, stop, [&](int64_t first, int64_t count,
                                                        const T* weights) {
    const T* c = coordinates + first * width;
    sums.assign(points == nullptr ? count * p.tiles_ * 2 : 0, 0.0);
    kept.assign(points != nullptr ? count * batches * 2 * kept_channels_ : 0, 0.0);
    const auto run = [&](int64_t item, Batch& own, std::vector<Worker>& with,
                         const EachTile& each) {
      const int64_t point = item / batches;
      T* out = outputs == nullptr ? nullptr
                                  : outputs + (first + point) * p.samples_ * p.slots_[p.output_];
      return run_batch(item % batches, c + point * width, weights + point * weights_size_, with,
                       own, each,
                       points == nullptr ? nullptr : kept.data() + item * 2 * kept_channels_,
                       sums.data() + (points == nullptr ? point * p.tiles_ * 2 : 0), out);
    };
    if (count * batches >= parallel.workers && bytes <= kBatchBytes / parallel.workers) {
      const bool done = Items(count * batches, parallel, stop).run([&](int id, int64_t item) {
        run(item, memory[id], workers, [&](int64_t tiles, const auto& body) {
          for (int64_t t = 0; t < tiles; ++t) body(id, t);
          return true;
        });
      });
      if (!done) return false;
    } else {
      for (int64_t item = 0; item < count * batches; ++item)
        if (!run(item, memory[0], workers, [&](int64_t tiles, const auto& body) {
              return Items(tiles, parallel, stop).run(body);
            }))
          return false;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (points != nullptr) {
        average(kept.data() + i * batches * 2 * kept_channels_, points + (first + i) * p.n_);
        continue;
      }
      double total = 0, hits = 0;
      for (int64_t t = 0; t < p.tiles_; ++t) {
        total += sums[2 * (i * p.tiles_ + t)];
        hits += sums[2 * (i * p.tiles_ + t) + 1];
      }
      loss[first + i] = total;
      if (correct != nullptr) correct[first + i] = hits;
    }
    return true;
  });
}

template <typename T>
bool Question<T>::collect(int64_t g, const T* coordinates, T* points, const Parallel& parallel,
                          const ShouldStop& stop) const {
  const Program<T>& p = program_;
  if (own_.empty()) throw std::invalid_argument("Question: no statistics of a batch to collect");
  if (points_) {
    std::copy_n(coordinates, g * p.n_, points);
  } else {
    std::vector<const T*> d;
    for (const auto& direction : source_directions_) d.push_back(direction.data());
    std::vector<T> theta(source_base_.size());
    for (int64_t i = 0; i < g; ++i) {
      p.kernels_.perturb(static_cast<int64_t>(theta.size()), k_, source_base_.data(), d.data(),
                         coordinates + i * k_, theta.data());
      std::copy_n(theta.data(), p.n_, points + i * p.n_);
    }
  }
  if (kept_channels_ == 0 || g == 0) return true;
  return run_batches(g, coordinates, nullptr, nullptr, nullptr, points, parallel, stop);
}

template class Question<float>;
template class Question<double>;

}  // namespace pylandscape
