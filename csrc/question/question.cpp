#include "question/question.h"

#include <algorithm>
#include <stdexcept>

#include "program/items.h"
#include "program/ops/entry.h"

namespace pylandscape {
namespace {

constexpr int64_t kGroupBytes = 32 << 20;      // weights of the points in flight
constexpr int64_t kMaxGroup = 1024;            // points in flight
constexpr int64_t kWeightChunk = 1 << 16;      // elements of a point's weights per work item
constexpr int64_t kCombineBytes = int64_t(1) << 30;  // pre-activations kept per layer at most

template <typename T>
bool any_nonzero(const T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (x[i] != T(0)) return true;  // NaN counts as a move
  return false;
}

}  // namespace

template <typename T>
Question<T>::Question(const Program<T>& program, const T* theta, const T* directions, int64_t k,
                      const Parallel& parallel, const ShouldStop& stop)
    : program_(program), k_(k), points_(theta == nullptr) {
  const Program<T>& p = program_;
  base_ = Buffer<T>(p.packed_size_);
  for (const Use& use : p.uses_) p.pack(use, theta, p.constants_.data(), base_.data() + use.packed);
  const Moves moves = find_moves(directions);
  for (size_t use = 0; use < p.uses_.size(); ++use)
    moved_.push_back(moves.moved(p, static_cast<int>(use)));
  choose_steps(moves);
  place_weights(directions);
  compute_static(directions, parallel, stop);
  for (size_t i = 0; i < p.fused_.size(); ++i) {
    if (!p.fused_[i].norm.own) continue;
    own_.push_back(i);
    if (p.fused_[i].norm.keep_mean >= 0) kept_channels_ += p.fused_[i].k;
  }
  if (!p.lanes_ && own_.empty()) return;
  source_base_.assign(static_cast<size_t>(p.n_), T(0));
  if (theta != nullptr) source_base_.assign(theta, theta + p.n_);
  source_base_.insert(source_base_.end(), p.constants_.begin(), p.constants_.end());
  for (int64_t j = 0; j < k && !points_; ++j) {
    source_directions_.emplace_back(directions + j * p.n_, directions + (j + 1) * p.n_);
    source_directions_.back().resize(source_base_.size());
  }
  if (p.lanes_) {
    expand_lanes();
    return;
  }
  const int64_t lanes = p.kernels_.vector_length, size = (p.n_ + lanes - 1) / lanes * lanes;
  source_base_.resize(size);  // whole vectors, without the constants
  for (auto& direction : source_directions_) direction.resize(size);
}

template <typename T>
Question<T>::Question(const Program<T>& program, const Parallel& parallel, const ShouldStop& stop)
    : Question(program, nullptr, nullptr, program.n_, parallel, stop) {}

// Which directions move which uses.
template <typename T>
Moves Question<T>::find_moves(const T* directions) const {
  Moves moves{points_, {}};
  moves.directions.resize(program_.uses_.size());
  if (points_) return moves;
  for (size_t u = 0; u < program_.uses_.size(); ++u) {
    const Use& use = program_.uses_[u];
    for (int64_t j = 0; use.source >= 0 && j < k_; ++j)
      if (any_nonzero(directions + j * program_.n_ + use.source, use.size()))
        moves.directions[u].push_back(static_cast<int>(j));
  }
  return moves;
}

template <typename T>
void Question<T>::choose_steps(const Moves& moves) {
  const Program<T>& p = program_;
  const auto size = [&](const Op& op, int64_t terms) {  // of the terms of a combination
    return p.tiles_ * terms * op.outer * op.m * p.tile_;
  };
  const StepPlan plan = plan_steps(p, p.fused_, moves, [&](const Op& op, int64_t terms) {
    return size(op, terms) * static_cast<int64_t>(sizeof(T)) <= kCombineBytes;
  });
  for (size_t i = 0; i < p.fused_.size(); ++i) {
    const Op& op = p.fused_[i];
    Step step{plan.how[i], {}, {}};
    if (step.how == How::kCombine) {
      step.moves = moves.directions[op.weight];
      step.z = Buffer<T>(size(op, 1 + static_cast<int64_t>(step.moves.size())));
    }
    steps_.push_back(std::move(step));
  }
  cache_.resize(p.slots_.size());
  for (size_t s = 1; s < p.slots_.size(); ++s)
    if (plan.kept[s]) cache_[s] = Buffer<T>(p.tiles_ * p.slots_[s] * p.tile_);
}

// A point's own weights: the moved uses that its kernels read. A combined layer reads only its bias.
template <typename T>
void Question<T>::place_weights(const T* directions) {
  const Program<T>& p = program_;
  weight_place_.assign(p.uses_.size(), -1);
  const auto place = [&](int use) {
    if (!moved_[use] || weight_place_[use] >= 0) return;
    weight_place_[use] = weights_size_;
    weights_size_ += (p.uses_[use].size() + 15) / 16 * 16;
  };
  for (size_t i = 0; i < p.fused_.size(); ++i) each_read(p.fused_[i], steps_[i].how, place);
  perturbed_size_ = weights_size_;
  table_place_.assign(p.tables_.size(), -1);
  tables_.resize(p.tables_.size());
  for (const Op& op : p.tables_) {
    bool moved = false;
    op.each_use([&](int use) { moved = moved || moved_[use]; });
    if (moved) table_place_[op.table] = weights_size_, weights_size_ += table_size(op);
    else tables_[op.table] = Buffer<T>(table_size(op));
    if (!moved) fill_table(op, nullptr, tables_[op.table].data());
  }
  if (points_) return;
  moved_base_ = Buffer<T>(perturbed_size_);
  for (int64_t j = 0; j < k_; ++j) moved_directions_.emplace_back(perturbed_size_);
  for (size_t u = 0; u < p.uses_.size(); ++u) {
    if (weight_place_[u] < 0) continue;
    const Use& use = p.uses_[u];
    std::copy_n(base_.data() + use.packed, use.size(), moved_base_.data() + weight_place_[u]);
    for (int64_t j = 0; j < k_; ++j)
      p.pack(use, directions + j * p.n_, nullptr, moved_directions_[j].data() + weight_place_[u]);
  }
}

// Runs the static steps on every tile, keeps what the others read, and fills the combined layers.
template <typename T>
void Question<T>::compute_static(const T* directions, const Parallel& parallel,
                                 const ShouldStop& stop) {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  std::vector<std::vector<Buffer<T>>> packed(p.fused_.size());  // combined layers' directions
  for (size_t i = 0; i < p.fused_.size(); ++i)
    for (const int j : steps_[i].moves) {
      const Use& use = p.uses_[p.fused_[i].weight];
      packed[i].emplace_back(use.size());
      p.pack(use, directions + j * p.n_, nullptr, packed[i].back().data());
    }
  std::vector<Buffer<T>> arenas(parallel.workers), rooms(parallel.workers);
  const bool done = Items(p.tiles_, parallel, stop).run([&](int worker, int64_t t) {
    Buffer<T>& arena = arenas[worker];
    if (arena.size() == 0) {
      arena = Buffer<T>(std::max<int64_t>(1, p.arena_rows_) * p.tile_);
      rooms[worker] = make_room();
    }
    const int64_t cols = p.padded_columns(t);
    std::vector<const T*> slots(p.slots_.size(), nullptr);
    slots[0] = p.tile_data(t);
    for (size_t i = 0; i < p.fused_.size(); ++i) {
      const Op& op = p.fused_[i];
      const Step& step = steps_[i];
      if (step.how == How::kStatic) {
        T* out = arena.data() + p.place_[op.output] * p.tile_;
        call(op, cols, slots.data(), nullptr, out, rooms[worker].data());
        slots[op.output] = out;
        if (cache_[op.output].size() > 0)
          std::copy_n(out, p.slots_[op.output] * cols,
                      cache_[op.output].data() + t * p.slots_[op.output] * p.tile_);
      } else if (step.how == How::kCombine) {
        const int64_t rows = op.outer * op.m, terms = 1 + static_cast<int64_t>(step.moves.size());
        for (int64_t j = 0; j < terms; ++j) {
          const T* w = j == 0 ? base_.data() + p.uses_[op.weight].packed : packed[i][j - 1].data();
          const bool keep_bias = j == 0 && op.bias >= 0 && !moved_[op.bias];
          const T* bias = keep_bias ? base_.data() + p.uses_[op.bias].packed : nullptr;
          T* z = step.z.data() + (t * terms + j) * rows * p.tile_;
          for (int64_t o = 0; o < op.outer; ++o)
            kernels.linear(op.m, cols, op.k, w,
                           slots[op.inputs[0]] + (op.first(0) + o * op.k) * cols, bias, false,
                           z + o * op.m * cols);
        }
      }
    }
  });
  if (!done) throw Stopped();
}

template <typename T>
const T* Question<T>::use_data(int use, const T* weights) const {
  if (use < 0) return nullptr;
  return moved_[use] ? weights + weight_place_[use] : base_.data() + program_.uses_[use].packed;
}

template <typename T>
int64_t Question<T>::table_size(const Op& op) const {
  return (op.outer * op.m + 15) / 16 * 16;
}

// Row id = the linear op's result for that row of the embedding: what `linear` computes, in the
// same order.
template <typename T>
void Question<T>::fill_table(const Op& op, T* weights, T* table) const {
  const T *w = use_data(op.weight, weights), *x = use_data(op.second, weights);
  const T* bias = use_data(op.bias, weights);
  if (bias == nullptr)
    return program_.kernels_.linear(op.outer, op.m, op.k, w, x, nullptr, false, table);
  for (int64_t row = 0; row < op.outer; ++row) std::copy_n(bias, op.m, table + row * op.m);
  program_.kernels_.linear_add(op.outer, op.m, op.k, w, x, table);
}

// One op of one tile, samples as lanes.
template <typename T>
void Question<T>::call(const Op& op, int64_t cols, const T* const* slots, const T* weights,
                       T* out, T* room) const {
  const T* table = nullptr;
  if (op.table >= 0)
    table = table_place_[op.table] >= 0 ? weights + table_place_[op.table]
                                        : tables_[op.table].data();
  const Parameters<T> at(op, [&](int use) { return use_data(use, weights); });
  passes<T>(op.kind).call({op, program_, program_.kernels_, cols, slots, at, table, out, room});
}

template <typename T>
Buffer<T> Question<T>::make_room() const {
  return Buffer<T>(program_.room_ * program_.kernels_.vector_length);
}

// Part `part` of a point's moved weights: a chunk of the packed vector, or one use of a point.
template <typename T>
void Question<T>::fill_weights(int64_t point, int64_t part, const T* coordinates,
                               T* weights) const {
  const Program<T>& p = program_;
  if (points_) {
    if (weight_place_[part] >= 0)
      p.pack(p.uses_[part], coordinates + point * p.n_, nullptr, weights + weight_place_[part]);
    return;
  }
  const int64_t first = part * kWeightChunk;
  const int64_t count = std::min(kWeightChunk, perturbed_size_ - first);
  std::vector<const T*> d;
  std::vector<T> c;  // that are not 0, as in `combine`
  for (int64_t j = 0; j < k_; ++j) {
    if (coordinates[point * k_ + j] == T(0)) continue;
    d.push_back(moved_directions_[j].data() + first);
    c.push_back(coordinates[point * k_ + j]);
  }
  p.kernels_.perturb(count, static_cast<int64_t>(c.size()), moved_base_.data() + first, d.data(),
                     c.data(), weights + first);
}

template <typename T>
void Question<T>::run_tile(int64_t t, const T* c, const T* weights, Worker& worker, double* loss,
                           double* correct, T* outputs, const Asked& asked) const {
  find_slots(t, worker.arena.data(), worker);
  run_ops(0, program_.fused_.size(), t, c, weights, worker.arena.data(), worker);
  finish_tile(t, worker, loss, correct, outputs, asked);
}

template <typename T>
void Question<T>::find_slots(int64_t t, T* arena, Worker& worker) const {
  const Program<T>& p = program_;
  worker.slots.resize(p.slots_.size());
  worker.slots[0] = p.tile_data(t);
  for (size_t s = 1; s < p.slots_.size(); ++s) {
    if (cache_[s].size() > 0)
      worker.slots[s] = cache_[s].data() + t * p.slots_[s] * p.tile_;
    else
      worker.slots[s] = p.place_[s] < 0 ? nullptr : arena + p.place_[s] * p.tile_;
  }
}

template <typename T>
void Question<T>::run_ops(size_t first, size_t last, int64_t t, const T* c, const T* weights,
                          T* arena, Worker& worker) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t);
  std::vector<const T*>& slot = worker.slots;
  for (size_t i = first; i < last; ++i) {
    const Op& op = p.fused_[i];
    const Step& step = steps_[i];
    if (step.how == How::kStatic) continue;
    T* out = arena + p.place_[op.output] * p.tile_;
    if (step.how == How::kKernel) call(op, cols, slot.data(), weights, out, worker.room.data());
    else combine(op, step, t, c, weights, worker, out);
  }
}

// A linear op as theta's products plus the coefficients' sum of those of the directions; of a line
// between two of many models only these two have coefficients that are not 0.
template <typename T>
void Question<T>::combine(const Op& op, const Step& step, int64_t t, const T* c, const T* weights,
                          Worker& worker, T* out) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t), rows = op.outer * op.m;
  const int64_t count = static_cast<int64_t>(step.moves.size());
  auto& z = worker.z;
  auto& own = worker.own;
  z.clear(), own.clear();
  const T* of_theta = step.z.data() + t * (count + 1) * rows * p.tile_;
  z.push_back(of_theta);
  for (int64_t j = 0; j < count; ++j) {
    if (c[step.moves[j]] == T(0)) continue;
    z.push_back(of_theta + (j + 1) * rows * p.tile_);
    own.push_back(c[step.moves[j]]);
  }
  const T* bias = op.bias >= 0 && moved_[op.bias] ? use_data(op.bias, weights) : nullptr;
  for (int64_t o = 0; o < op.outer; ++o) {
    p.kernels_.combine(op.m, cols, static_cast<int64_t>(own.size()), z.data(), own.data(), bias,
                       op.relu, out + o * op.m * cols);
    for (auto& pointer : z) pointer += op.m * cols;
  }
}

template <typename T>
void Question<T>::finish_tile(int64_t t, Worker& worker, double* loss, double* correct,
                              T* outputs, const Asked& asked) const {
  const Program<T>& p = program_;
  const int64_t cols = p.padded_columns(t), samples = p.tile_columns(t);
  double* scratch = worker.scratch.data();
  const T* result = worker.slots[p.output_];
  if (outputs != nullptr) {
    const int64_t features = p.slots_[p.output_];
    for (int64_t s = 0; s < samples; ++s)
      for (int64_t f = 0; f < features; ++f)
        outputs[(p.tile_first_[t] + s) * features + f] = result[f * cols + s];
  }
  double* hits = correct != nullptr ? scratch + p.tile_ : nullptr;
  p.kernels_.loss(p.loss_, p.targets(t), cols, result, scratch, hits);
  *loss = sum_columns(scratch, samples);
  if (correct != nullptr) *correct = sum_columns(hits, samples);
  if (asked.of == nullptr) return;
  const SampleLosses& of = *asked.of;
  const int64_t first = p.tile_first_[t];
  const double* shares = of.shares == nullptr ? nullptr : of.shares + first;
  asked.to[0] = tally(scratch, shares, samples, asked.share, *loss);
  if (of.own != nullptr)
    std::copy_n(scratch, samples, of.own + asked.point * p.samples_ + first);
  if (of.references == 0) return;
  double* d = scratch + 2 * p.tile_;
  const double sum = subtract_references(of, of.weights + asked.point * of.references, first,
                                         samples, p.samples_, scratch, d);
  asked.to[1] = tally(d, shares, samples, asked.share, sum);
}

template <typename T>
bool Question<T>::run_groups(int64_t g, const T* coordinates, const Parallel& parallel,
                             const ShouldStop& stop,
                             const std::function<bool(int64_t, int64_t, const T*)>& body) const {
  const int64_t bytes = std::max<int64_t>(1, weights_size_ * static_cast<int64_t>(sizeof(T)));
  const int64_t group = std::min(g, std::clamp<int64_t>(kGroupBytes / bytes, 1, kMaxGroup));
  const int64_t parts = points_ ? static_cast<int64_t>(program_.uses_.size())
                                : (perturbed_size_ + kWeightChunk - 1) / kWeightChunk;
  Buffer<T> weights(group * weights_size_);
  for (int64_t first = 0; first < g; first += group) {
    const int64_t count = std::min(group, g - first);
    const T* c = coordinates + first * (points_ ? program_.n_ : k_);
    if (parts > 0 &&
        !Items(count * parts, parallel, stop).run([&](int, int64_t item) {
          const int64_t point = item / parts;
          fill_weights(point, item % parts, c, weights.data() + point * weights_size_);
        }))
      return false;
    if (!program_.tables_.empty() && !Items(count, parallel, stop).run([&](int, int64_t point) {
          T* own = weights.data() + point * weights_size_;
          for (const Op& op : program_.tables_)
            if (table_place_[op.table] >= 0) fill_table(op, own, own + table_place_[op.table]);
        }))
      return false;
    if (!body(first, count, weights.data())) return false;
  }
  return true;
}

template <typename T>
bool Question<T>::run_tiles(int64_t g, const T* coordinates, double* loss, double* correct,
                            T* outputs, const SampleLosses* asked, const Parallel& parallel,
                            const ShouldStop& stop) const {
  const Program<T>& p = program_;
  int64_t tile_bytes = 0;  // constants that one tile of a point reads
  for (const Step& step : steps_) tile_bytes += step.z.size() * static_cast<int64_t>(sizeof(T));
  for (const auto& cache : cache_) tile_bytes += cache.size() * static_cast<int64_t>(sizeof(T));
  const int64_t bytes = std::max<int64_t>(1, weights_size_ * static_cast<int64_t>(sizeof(T)));
  const bool point_major = bytes > tile_bytes / p.tiles_;

  std::vector<double> partial;
  std::vector<Shares> shares;
  std::vector<Tally> tallies;
  for (int64_t t = 0; asked != nullptr && t < p.tiles_; ++t)
    {
    const double* own = asked->shares == nullptr ? nullptr : asked->shares + p.tile_first_[t];
    shares.push_back(share_sums(own, p.tile_columns(t)));
  }
  std::vector<Worker> workers(parallel.workers);
  const int64_t width = points_ ? p.n_ : k_;
  return run_groups(g, coordinates, parallel, stop, [&](int64_t first, int64_t count,
                                                        const T* weights) {
    const T* c = coordinates + first * width;
    partial.resize(2 * count * p.tiles_);
    if (asked != nullptr) tallies.resize(2 * count * p.tiles_);
    const bool done = Items(count * p.tiles_, parallel, stop).run([&](int id, int64_t item) {
      Worker& worker = workers[id];
      if (worker.scratch.size() == 0) {
        worker.arena = Buffer<T>(p.arena_rows_ * p.tile_);
        worker.room = make_room();
        worker.scratch = Buffer<double>(3 * p.tile_);
      }
      const int64_t point = point_major ? item / p.tiles_ : item % count;
      const int64_t tile = point_major ? item % p.tiles_ : item / count;
      double* sums = partial.data() + 2 * (point * p.tiles_ + tile);
      T* out = outputs != nullptr
                   ? outputs + (first + point) * p.samples_ * p.slots_[p.output_]
                   : nullptr;
      run_tile(tile, c + point * width, weights + point * weights_size_, worker, sums,
               correct != nullptr ? sums + 1 : nullptr, out,
               {asked, first + point, asked != nullptr ? shares[tile].sum : 0,
                tallies.data() + 2 * (point * p.tiles_ + tile)});
    });
    if (!done) return false;
    for (int64_t point = 0; point < count; ++point) {
      double total = 0, hits = 0;
      for (int64_t t = 0; t < p.tiles_; ++t) {
        total += partial[2 * (point * p.tiles_ + t)];
        hits += partial[2 * (point * p.tiles_ + t) + 1];
      }
      loss[first + point] = total;
      if (correct != nullptr) correct[first + point] = hits;
      if (asked == nullptr) continue;
      const Tally* own = tallies.data() + 2 * point * p.tiles_;
      asked->squares[first + point] = spread(own, 2, shares);
      if (asked->references > 0) asked->differences[first + point] = spread(own + 1, 2, shares);
    }
    return true;
  });
}

template <typename T>
bool Question<T>::run(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
                      const SampleLosses* asked, const Parallel& parallel,
                      const ShouldStop& stop) const {
  if (asked != nullptr && !own_.empty())
    throw std::invalid_argument("Question: samples that depend on their batch have no own losses");
  if (g == 0) return true;
  if (program_.lanes_ && outputs == nullptr)
    return run_lanes(g, coordinates, loss, correct, asked, parallel, stop);
  if (!own_.empty())
    return run_batches(g, coordinates, loss, correct, outputs, nullptr, parallel, stop);
  return run_tiles(g, coordinates, loss, correct, outputs, asked, parallel, stop);
}

template <typename T>
int64_t Question<T>::bytes() const {
  int64_t count = base_.size() + moved_base_.size() * (1 + (points_ ? 0 : k_));
  for (const Step& step : steps_) count += step.z.size();
  for (const auto& cache : cache_) count += cache.size();
  for (const auto& table : tables_) count += table.size();
  return count * static_cast<int64_t>(sizeof(T));
}

// One word per op: static, combine or kernel.
template <typename T>
std::string Question<T>::describe() const {
  if (program_.lanes_) return "point lanes";
  std::string words;
  for (const Step& step : steps_) {
    if (!words.empty()) words += ' ';
    words += step.how == How::kStatic ? "static" : step.how == How::kCombine ? "combine" : "kernel";
  }
  return words;
}

template class Question<float>;
template class Question<double>;

}  // namespace pylandscape
