#include <algorithm>
#include <cmath>

#include "program/items.h"
#include "program/program.h"

namespace pylandscape {
namespace {

constexpr int64_t kGroupBytes = 32 << 20;      // weights of the points in flight
constexpr int64_t kMaxGroup = 1024;            // points in flight
constexpr int64_t kWeightChunk = 1 << 16;      // elements of a point's weights per work item
constexpr int64_t kCombineBytes = int64_t(1) << 30;  // pre-activations kept per layer at most

// Sum in eight fixed chains: the order does not depend on the instruction set or the tile.
double sum_columns(const double* x, int64_t count) {
  double acc[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j) acc[j] += x[i + j];
  for (; i < count; ++i) acc[i % 8] += x[i];
  return ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]));
}

template <typename T>
bool any_nonzero(const T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (x[i] != T(0)) return true;  // NaN counts as a move
  return false;
}

}  // namespace

template <typename T>
Question<T>::Question(const Program<T>& program, const T* theta, const T* directions, int64_t k,
                      const Parallel& parallel)
    : program_(program), k_(k), points_(theta == nullptr) {
  const Program<T>& p = program_;
  base_ = Buffer<T>(p.packed_size_);
  for (const Use& use : p.uses_) p.pack(use, theta, p.constants_.data(), base_.data() + use.packed);
  find_moved(directions);
  plan_steps(directions);
  place_weights(directions);
  compute_static(directions, parallel);
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
Question<T>::Question(const Program<T>& program, const Parallel& parallel)
    : Question(program, nullptr, nullptr, program.n_, parallel) {}

// Which uses a point changes.
template <typename T>
void Question<T>::find_moved(const T* directions) {
  for (const Use& use : program_.uses_) {
    bool moved = points_ && use.source >= 0;
    for (int64_t j = 0; !points_ && use.source >= 0 && j < k_ && !moved; ++j)
      moved = any_nonzero(directions + j * program_.n_ + use.source, use.size());
    moved_.push_back(moved);
  }
}

// A step is static when no point changes its inputs or its parameters. A linear op on a static
// input is linear in the point: its pre-activations for theta and for each direction are computed
// once and combined per point, where that is less work than the product.
template <typename T>
void Question<T>::plan_steps(const T* directions) {
  const Program<T>& p = program_;
  std::vector<bool> dynamic(p.slots_.size(), false);
  std::vector<bool> cached(p.slots_.size(), false);
  for (const Op& op : p.fused_) {
    const bool moved_weight = op.weight >= 0 && moved_[op.weight];
    bool on_dynamic = false, moved = false;
    op.each_use([&](int use) { moved = moved || moved_[use]; });
    for (const int x : op.inputs) on_dynamic = on_dynamic || dynamic[x];
    Step step{How::kKernel, {}, {}};
    if (!on_dynamic && !moved && !op.norm.own) {
      step.how = How::kStatic;
    } else {
      dynamic[op.output] = true;
      if (op.kind == OpKind::kLinear && !on_dynamic && !points_) {
        const Use& use = p.uses_[op.weight];
        for (int64_t j = 0; moved_weight && j < k_; ++j)
          if (any_nonzero(directions + j * p.n_ + use.source, use.size()))
            step.moves.push_back(static_cast<int>(j));
        const int64_t terms = 1 + static_cast<int64_t>(step.moves.size());
        const int64_t size = p.tiles_ * terms * op.outer * op.m * p.tile_;
        if (terms < op.k && size * static_cast<int64_t>(sizeof(T)) <= kCombineBytes) {
          step.how = How::kCombine;
          step.z = Buffer<T>(size);
        }
      }
      if (step.how == How::kKernel)
        for (const int x : op.inputs) cached[x] = cached[x] || !dynamic[x];
    }
    steps_.push_back(std::move(step));
  }
  cached[p.output_] = !dynamic[p.output_];
  cache_.resize(p.slots_.size());
  for (size_t s = 1; s < p.slots_.size(); ++s)
    if (cached[s] && !dynamic[s]) cache_[s] = Buffer<T>(p.tiles_ * p.slots_[s] * p.tile_);
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
  for (size_t i = 0; i < p.fused_.size(); ++i) {
    const Op& op = p.fused_[i];
    if (steps_[i].how == How::kKernel) op.each_use(place);
    if (steps_[i].how == How::kCombine && op.bias >= 0) place(op.bias);
  }
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

// Runs the static steps on every tile, keeps what the others read, and fills the combined layers.
template <typename T>
void Question<T>::compute_static(const T* directions, const Parallel& parallel) {
  const Program<T>& p = program_;
  const auto& kernels = p.kernels_;
  std::vector<std::vector<Buffer<T>>> packed(p.fused_.size());  // combined layers' directions
  for (size_t i = 0; i < p.fused_.size(); ++i)
    for (const int j : steps_[i].moves) {
      const Use& use = p.uses_[p.fused_[i].weight];
      packed[i].emplace_back(use.size());
      p.pack(use, directions + j * p.n_, nullptr, packed[i].back().data());
    }
  std::vector<Buffer<T>> arenas(parallel.workers);
  Items(p.tiles_, parallel, {}).run([&](int worker, int64_t t) {
    Buffer<T>& arena = arenas[worker];
    if (arena.size() == 0) arena = Buffer<T>(std::max<int64_t>(1, p.arena_rows_) * p.tile_);
    const int64_t cols = p.padded_columns(t);
    std::vector<const T*> slots(p.slots_.size(), nullptr);
    slots[0] = p.x_.data() + t * p.slots_[0] * p.tile_;
    for (size_t i = 0; i < p.fused_.size(); ++i) {
      const Op& op = p.fused_[i];
      const Step& step = steps_[i];
      if (step.how == How::kStatic) {
        T* out = arena.data() + p.place_[op.output] * p.tile_;
        apply(op, cols, slots.data(), nullptr, out);
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

// Scale, then shift of every channel: of the batch norm, and of the convolution's bias before it.
template <typename T>
std::vector<T> Question<T>::norm_affine(const Op& op, const T* weights) const {
  const auto data = [&](int use) { return use_data(use, weights); };
  const int64_t channels = program_.uses_[op.norm.mean].size();
  const T *gain = data(op.norm.gain), *shift = data(op.norm.shift), *bias = data(op.bias);
  const T *mean = data(op.norm.mean), *variance = data(op.norm.variance);
  std::vector<T> affine(2 * channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale =
        (gain != nullptr ? double(gain[c]) : 1.0) / std::sqrt(variance[c] + op.norm.eps);
    const double at = double(bias != nullptr ? bias[c] : T(0)) - mean[c];
    affine[c] = static_cast<T>(scale);
    affine[channels + c] = static_cast<T>(at * scale + (shift != nullptr ? shift[c] : T(0)));
  }
  return affine;
}

// One op of one tile, samples as lanes.
template <typename T>
void Question<T>::apply(const Op& op, int64_t cols, const T* const* slots, const T* weights,
                        T* out) const {
  const auto& kernels = program_.kernels_;
  const T* x = op.inputs.empty() ? nullptr : slots[op.inputs[0]];
  const T* w = use_data(op.weight, weights);
  const T* b = use_data(op.bias, weights);
  const int64_t size = program_.slots_[op.output] * cols;
  switch (op.kind) {
    case OpKind::kLinear:
      for (int64_t o = 0; o < op.outer; ++o)
        kernels.linear(op.m, cols, op.k, w, x + (op.first(0) + o * op.k) * cols, b, op.relu,
                       out + o * op.m * cols);
      break;
    case OpKind::kUnary: kernels.unary(op.unary, op.a, op.b, size, x, out); break;
    case OpKind::kBinary:
      kernels.binary(op.binary, size, x, slots[op.inputs[1]], out);
      if (op.relu) kernels.unary(cpu::Unary::kRelu, 0, 0, size, out, out);
      break;
    case OpKind::kLayerNorm: kernels.layer_norm(op.outer, op.k, cols, op.a, w, b, x, out); break;
    case OpKind::kSoftmax:
      kernels.softmax(op.log, op.outer, op.k, op.inner, cols, x, out);
      break;
    case OpKind::kConcat:
      for (size_t i = 0; i < op.rows.size(); ++i)
        out = std::copy_n(slots[op.inputs[i]] + op.rows[i].first * cols, op.rows[i].count * cols,
                          out);
      if (!op.rows.empty()) break;
      for (int64_t o = 0; o < op.outer; ++o)
        for (const int s : op.inputs) {
          const int64_t part = program_.slots_[s] / op.outer * cols;
          out = std::copy_n(slots[s] + o * part, part, out);
        }
      break;
    case OpKind::kExpand:
      for (size_t f = 0; f < op.index.size(); ++f)
        kernels.fill_rows(1, cols, w + op.index[f], out + static_cast<int64_t>(f) * cols);
      break;
    case OpKind::kConv: {
      cpu::Epilogue<T> e{nullptr, b, op.inputs.size() > 1 ? slots[op.inputs[1]] : nullptr, op.relu};
      std::vector<T> affine;
      if (op.norm.on()) {
        affine = norm_affine(op, weights);
        e.scale = affine.data(), e.shift = e.scale + affine.size() / 2;
      }
      kernels.conv(op.conv, cols, w, x, e, out);
      break;
    }
    case OpKind::kBatchNorm: {
      const std::vector<T> affine = norm_affine(op, weights);
      kernels.channel_affine(op.outer, op.k, cols, affine.data(), affine.data() + op.k, op.relu, x,
                             out);
      break;
    }
    case OpKind::kMatmul:
      kernels.matmul(op.matmul(), cols, static_cast<T>(op.a), false, x, slots[op.inputs[1]], out);
      break;
    case OpKind::kGather: gather_rows(op.index, cols, static_cast<T>(op.a), x, out); break;
    case OpKind::kGroupNorm:
      kernels.group_norm(op.norm_args(), cols, w, b, op.relu, x, out);
      break;
    case OpKind::kPool: kernels.pool(op.pool_args(), cols, x, out); break;
    case OpKind::kEmbedding:
      for (size_t i = 0; i < op.index.size(); ++i)
        kernels.embedding(op.k, cols, -1, w, x + op.index[i] * cols,
                          out + static_cast<int64_t>(i) * op.k * cols);
      break;
    case OpKind::kLookup: {
      const T* table = table_place_[op.table] >= 0 ? weights + table_place_[op.table]
                                                   : tables_[op.table].data();
      for (size_t i = 0; i < op.index.size(); ++i)
        kernels.embedding(op.m, cols, -1, table, x + op.index[i] * cols,
                          out + static_cast<int64_t>(i) * op.m * cols);
      break;
    }
    case OpKind::kCell:
      kernels.cell(op.cell, op.k, cols,
                   {x, slots[op.inputs[1]], slots[op.inputs[2]] + op.first(2) * cols}, out);
      break;
  }
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
  for (const auto& direction : moved_directions_) d.push_back(direction.data() + first);
  p.kernels_.perturb(count, k_, moved_base_.data() + first, d.data(), coordinates + point * k_,
                     weights + first);
}

template <typename T>
void Question<T>::run_tile(int64_t t, const T* c, const T* weights, Worker& worker, double* loss,
                           double* correct, T* outputs) const {
  find_slots(t, worker.arena.data(), worker);
  run_ops(0, program_.fused_.size(), t, c, weights, worker.arena.data(), worker);
  finish_tile(t, worker, loss, correct, outputs);
}

template <typename T>
void Question<T>::find_slots(int64_t t, T* arena, Worker& worker) const {
  const Program<T>& p = program_;
  worker.slots.resize(p.slots_.size());
  worker.slots[0] = p.x_.data() + t * p.slots_[0] * p.tile_;
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
    if (step.how == How::kKernel) {
      apply(op, cols, slot.data(), weights, out);
    } else {
      const int64_t count = static_cast<int64_t>(step.moves.size());
      const int64_t rows = op.outer * op.m;
      auto& z = worker.z;
      auto& own = worker.own;
      z.clear(), own.clear();
      for (int64_t j = 0; j <= count; ++j)
        z.push_back(step.z.data() + (t * (count + 1) + j) * rows * p.tile_);
      for (const int j : step.moves) own.push_back(c[j]);
      const T* bias = op.bias >= 0 && moved_[op.bias] ? use_data(op.bias, weights) : nullptr;
      for (int64_t o = 0; o < op.outer; ++o) {
        p.kernels_.combine(op.m, cols, count, z.data(), own.data(), bias, op.relu,
                           out + o * op.m * cols);
        for (auto& pointer : z) pointer += op.m * cols;
      }
    }
  }
}

template <typename T>
void Question<T>::finish_tile(int64_t t, Worker& worker, double* loss, double* correct,
                              T* outputs) const {
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
  cpu::Targets targets;
  const int64_t at = t * p.target_rows_ * p.tile_;
  if (p.index_.size() > 0) targets.index = p.index_.data() + at;
  if (p.dense_.size() > 0) targets.dense = p.dense_.data() + at;
  double* hits = correct != nullptr ? scratch + p.tile_ : nullptr;
  p.kernels_.loss(p.loss_, targets, cols, result, scratch, hits);
  *loss = sum_columns(scratch, samples);
  if (correct != nullptr) *correct = sum_columns(hits, samples);
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
                            T* outputs, const Parallel& parallel, const ShouldStop& stop) const {
  const Program<T>& p = program_;
  int64_t tile_bytes = 0;  // constants that one tile of a point reads
  for (const Step& step : steps_) tile_bytes += step.z.size() * static_cast<int64_t>(sizeof(T));
  for (const auto& cache : cache_) tile_bytes += cache.size() * static_cast<int64_t>(sizeof(T));
  const int64_t bytes = std::max<int64_t>(1, weights_size_ * static_cast<int64_t>(sizeof(T)));
  const bool point_major = bytes > tile_bytes / p.tiles_;

  std::vector<double> partial;
  std::vector<Worker> workers(parallel.workers);
  const int64_t width = points_ ? p.n_ : k_;
  return run_groups(g, coordinates, parallel, stop, [&](int64_t first, int64_t count,
                                                        const T* weights) {
    const T* c = coordinates + first * width;
    partial.resize(2 * count * p.tiles_);
    const bool done = Items(count * p.tiles_, parallel, stop).run([&](int id, int64_t item) {
      Worker& worker = workers[id];
      if (worker.scratch.size() == 0) {
        worker.arena = Buffer<T>(p.arena_rows_ * p.tile_);
        worker.scratch = Buffer<double>(2 * p.tile_);
      }
      const int64_t point = point_major ? item / p.tiles_ : item % count;
      const int64_t tile = point_major ? item % p.tiles_ : item / count;
      double* sums = partial.data() + 2 * (point * p.tiles_ + tile);
      T* out = outputs != nullptr
                   ? outputs + (first + point) * p.samples_ * p.slots_[p.output_]
                   : nullptr;
      run_tile(tile, c + point * width, weights + point * weights_size_, worker, sums,
               correct != nullptr ? sums + 1 : nullptr, out);
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
    }
    return true;
  });
}

// vector_length points at once: every parameter is a vector over the points.
template <typename T>
void Question<T>::run_block(int64_t first, int64_t count, const T* coordinates, Worker& worker,
                            double* loss, double* correct) const {
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
  for (int64_t l = 0; l < lanes; ++l) {
    const T* row = coordinates + (first + std::min(l, count - 1)) * width;
    for (int64_t i = 0; i < width; ++i) moved[i * lanes + l] = row[i];
  }
  if (!points_) kernels.perturb_lanes(source, k_, source_base_.data(), worker.z.data(), c, weights);
  const auto place = [&](int slot) -> T* { return values + p.place_[slot] * cols; };
  const auto read = [&](int slot) -> const T* { return slot == 0 ? lane_x_.data() : place(slot); };
  const auto parameter = [&](int use) -> const T* {
    if (use < 0) return nullptr;
    const int64_t s = p.uses_[use].source;
    return weights + (s >= 0 ? s : p.n_ - 1 - s) * lanes;
  };
  std::vector<const T*>& slots = worker.slots;
  for (const Op& op : p.fused_) {
    T* out = place(op.output);
    if (op.kind == OpKind::kLinear) {
      for (int64_t o = 0; o < op.outer; ++o)
        kernels.linear_lanes(op.m, p.samples_, op.k, parameter(op.weight),
                             read(op.inputs[0]) + (op.first(0) + o * op.k) * cols,
                             parameter(op.bias), op.relu,
                             out + o * op.m * cols);
    } else {
      for (const int s : op.inputs) slots[s] = read(s);
      apply(op, cols, slots.data(), nullptr, out);
    }
  }
  cpu::Targets targets;
  if (lane_index_.size() > 0) targets.index = lane_index_.data();
  if (lane_dense_.size() > 0) targets.dense = lane_dense_.data();
  double* hits = correct != nullptr ? scratch + cols : nullptr;
  kernels.loss(p.loss_, targets, cols, read(p.output_), scratch, hits);
  const auto sum_samples = [&](double* terms, double* result) {
    for (int64_t s = 1; s < p.samples_; ++s)
      for (int64_t l = 0; l < lanes; ++l) terms[l] += terms[s * lanes + l];
    std::copy_n(terms, count, result + first);
  };
  sum_samples(scratch, loss);
  if (hits != nullptr) sum_samples(hits, correct);
}

template <typename T>
bool Question<T>::run_lanes(int64_t g, const T* coordinates, double* loss, double* correct,
                            const Parallel& parallel, const ShouldStop& stop) const {
  const Program<T>& p = program_;
  const int64_t lanes = p.kernels_.vector_length, cols = p.samples_ * lanes;
  const int64_t per_item = 8 * lanes;
  const int64_t rows = static_cast<int64_t>(source_base_.size()) + (points_ ? 0 : k_);
  std::vector<Worker> workers(parallel.workers);
  return Items((g + per_item - 1) / per_item, parallel, stop).run([&](int id, int64_t item) {
    Worker& worker = workers[id];
    if (worker.scratch.size() == 0) {
      worker.arena = Buffer<T>(rows * lanes + p.arena_rows_ * cols);
      worker.scratch = Buffer<double>(2 * cols);
      worker.slots.resize(p.slots_.size());
      for (const auto& direction : source_directions_) worker.z.push_back(direction.data());
      for (size_t i = p.n_; i < source_base_.size(); ++i)  // points leave the constants alone
        std::fill_n(worker.arena.data() + i * lanes, lanes, source_base_[i]);
    }
    const int64_t end = std::min(g, (item + 1) * per_item);
    for (int64_t first = item * per_item; first < end; first += lanes)
      run_block(first, std::min(lanes, end - first), coordinates, worker, loss, correct);
  });
}

template <typename T>
bool Question<T>::run(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
                      const Parallel& parallel, const ShouldStop& stop) const {
  if (g == 0) return true;
  if (program_.lanes_ && outputs == nullptr)
    return run_lanes(g, coordinates, loss, correct, parallel, stop);
  if (!own_.empty())
    return run_batches(g, coordinates, loss, correct, outputs, nullptr, parallel, stop);
  return run_tiles(g, coordinates, loss, correct, outputs, parallel, stop);
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
