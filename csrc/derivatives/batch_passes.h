// Loss, gradient and products of one batch whose samples depend on each other, by batch norm with
// the batch's own statistics.
//
// A batch lies in several tiles, which all go from one such norm to the next: there the tiles'
// moments, and backward the sums over their adjoints, are combined in order. So all values of the
// batch are kept, and what the tiles find does not depend on who runs them.
//
// Products are forward over reverse, as those of Derivatives: tangents go through the tiles in the
// same way, and at a norm those of its statistics are combined. Of a norm's normalised values
// z = (x - m) s, s = 1 / sqrt(variance + eps), y = g z + b, with <.> the mean over the batch and the
// pixels:
//   rz = s (rx - <rx> - z <z rx>),   ry = rg z + g rz + rb,   rs = -s^2 <z rx>
//   dx = g s u,   u = dy - <dy> - z <z dy>
//   rdx = (rg s + g rs) u + g s (rdy - <rdy> - rz <z dy> - z <z rdy + rz dy>)
#pragma once
#include <algorithm>
#include <functional>

#include "derivatives/parameters.h"
#include "program/program.h"

namespace pylandscape {

// Of L = sum of the loss terms l_i over the samples: its Hessian; J^T (d^2 l / d outputs^2) J;
// sum_i (grad l_i)(grad l_i)^T.
enum class Matrix : int { kHessian, kGaussNewton, kCovariance };

template <typename T>
struct BatchTile {
  const T *data, *columns;  // as in Pass
  int64_t cols, samples, first;  // with padding; without; its first sample in the batch
  cpu::Targets targets;
};

// Runs body(worker, group) for the groups of a batch's tiles, possibly at once, and waits. worker may
// be -1: the caller's own.
using Groups = std::function<void(int64_t groups, const std::function<void(int, int64_t)>& body)>;

// Of one worker.
template <typename T>
struct BatchScratch {
  Buffer<T> panels, columns;          // packed late (Pass)
  Buffer<T> own_panels, own_columns;  // of tangents
  std::vector<double> terms;
};

// What one batch takes, used again by the next. Buffers grow to the largest.
template <typename T>
struct BatchMemory {
  struct Tile {
    Primal<T> primal;
    std::vector<const T*> slots;
    double loss;
  };
  struct Norm {  // of one own op; (channels,) each
    std::vector<double> mean, variance;  // biased
    std::vector<double> inverse;         // 1 / sqrt(variance + eps)
    std::vector<double> adjoints;        // (2, channels): <dy> and <z dy>
    std::vector<T> affine;               // (6, channels), in the order of cpu::OwnNorm
    cpu::OwnNorm<T> args;
  };
  std::vector<Tile> tiles;
  std::vector<Norm> norms;      // in the order of BatchPasses::own
  std::vector<double> moments;  // (tiles, 2, channels) of the op that is on
};

// What one vector takes.
template <typename T>
struct BatchTangents {
  struct Norm {
    std::vector<double> moved;  // (2, channels): <rx> and <z rx>
    std::vector<T> affine;      // (7, channels), in the order of cpu::OwnNormTangent
    cpu::OwnNormTangent<T> args;
    cpu::OwnNorm<T> seeded;  // as at theta, but with the adjoints that a seed gives
  };
  std::vector<Tangents<T>> tiles;
  std::vector<Norm> norms;
  std::vector<double> moments;
};

template <typename T>
class BatchPasses {
 public:
  // layout: of tiles of `width` columns.
  BatchPasses(const Program<T>& program, const TileLayout& layout, int64_t width);

  // What calls have in common. scratch: (workers,), made where it is not there.
  struct Call {
    const std::vector<BatchTile<T>>& tiles;
    const Vector<T>& theta;
    const Draw* draw;  // of the run, whose `first` is not read; or null
    const Groups& run;
    std::vector<BatchScratch<T>>& scratch;
  };

  // Of the loss terms' sum over the batch; sums[g] (n,) += group g's share of its gradient, for
  // at most kMostGroups; or null. products: memory is for these afterwards.
  double gradient(const Call& call, BatchMemory<T>& memory, double* const* sums,
                  bool products = false) const;
  // sums[j][g] (n,) += group g's share of the matrix times vectors[j], of `count`; memory is what
  // gradient() left. to: (count,). Not of kCovariance: samples have no loss of their own.
  void products(Matrix matrix, const Call& call, const BatchMemory<T>& memory, int64_t count,
                const Vector<T>* vectors, BatchTangents<T>* to,
                const std::vector<std::vector<double*>>& sums) const;

  // Ops that take the batch's statistics, in their order; memory.norms is about these.
  const std::vector<size_t>& own() const { return own_; }
  int64_t tile_bytes() const;          // of BatchMemory
  int64_t tile_tangent_bytes() const;  // of BatchTangents

 private:
  using Memory = BatchMemory<T>;
  using Moved = BatchTangents<T>;
  struct Adjoints {  // that a reverse pass is about, of one tile
    const Buffer<T>& rows;
    double* moments;  // of the tile
  };

  // Into how many groups the tiles of a batch are divided.
  int64_t groups(const std::vector<BatchTile<T>>& tiles) const;
  Span span(size_t part) const;  // its ops: after a norm, up to the next one
  int64_t most_channels() const;
  BatchScratch<T>& scratch(const Call& call, int worker) const;
  // body(scratch, group, t) for every tile.
  template <typename F>
  void each(const Call& call, F body) const;
  // f(pass), where pass(i) is the Pass of op i on tile t.
  template <typename F>
  void with_pass(const Call& call, const Memory& memory, int64_t t,
                 const BatchScratch<T>& scratch, F f) const;
  T* rows(const Buffer<T>& of, int slot) const {
    return layout_.moves[slot] ? of.data() + layout_.row[slot] * width_ : nullptr;
  }
  // Those that the op is the first to add to.
  void clear_adjoints(const Buffer<T>& of, size_t op, int64_t cols) const {
    for (const int slot : cleared_[op])
      std::fill_n(rows(of, slot), program_.slots_[slot] * cols, T(0));
  }
  // Of a parameter, of v; null: not in theta.
  const T* along(const Vector<T>& v, int use) const {
    return program_.in_theta(use) ? v.packed.data() + program_.uses_[use].packed : nullptr;
  }

  void forward(const Call& call, Memory& memory, size_t part, int64_t t,
               const BatchScratch<T>& scratch) const;
  double loss(const Call& call, Memory& memory, int64_t t, BatchScratch<T>& scratch) const;
  // norms(i): the OwnNorm of own op i.
  template <typename F>
  void reverse(const Call& call, const Memory& memory, const Adjoints& adjoints, F norms,
               size_t part, int64_t t, const BatchScratch<T>& scratch, double* sums) const;
  void combine_moments(const Call& call, Memory& memory, size_t norm) const;
  // means (2, channels) of the tiles' sums, which the targets (n,) get.
  std::vector<double> combine_sums(const Call& call, const std::vector<double>& moments,
                                   size_t norm, double* sums) const;
  // slope and offset of what goes back, from <dy> and <z dy>.
  void set_adjoints(const typename Memory::Norm& at, const std::vector<double>& means, T* slope,
                    T* offset) const;

  void tangent_forward(const Call& call, const Memory& memory, const Vector<T>& v, size_t part,
                       int64_t t, const BatchScratch<T>& scratch, Moved& to) const;
  void seed(const Call& call, const Memory& memory, int64_t t, const Moved& to) const;
  void tangent_reverse(const Call& call, const Memory& memory, const Vector<T>& v, size_t part,
                       int64_t t, const BatchScratch<T>& scratch, Moved& to, double* sums) const;
  void combine_moved(const Call& call, const Memory& memory, const Vector<T>& v, size_t norm,
                     Moved& to) const;
  void combine_moved_sums(const Call& call, const Memory& memory, const Vector<T>& v, size_t norm,
                          Moved& to, double* sums) const;
  bool reverses(const Op& op) const { return layout_.moves[op.output]; }

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  const TileLayout& layout_;
  int64_t width_;
  std::vector<size_t> own_;
  std::vector<std::vector<int>> cleared_;  // by op: slots whose adjoints it is the first to add to
  std::vector<bool> fresh_;                // by op: an own one that is the first to
};

template <typename T>
template <typename F>
void BatchPasses<T>::each(const Call& call, F body) const {
  const auto count = static_cast<int64_t>(call.tiles.size()), groups = this->groups(call.tiles);
  call.run(groups, [&](int worker, int64_t group) {
    for (int64_t t = group * count / groups; t < (group + 1) * count / groups; ++t)
      body(scratch(call, worker), group, t);
  });
}

template <typename T>
template <typename F>
void BatchPasses<T>::with_pass(const Call& call, const Memory& memory, int64_t t,
                               const BatchScratch<T>& scratch, F f) const {
  const BatchTile<T>& tile = call.tiles[t];
  Draw draw{};
  if (call.draw != nullptr) draw = *call.draw, draw.first = tile.first;
  f([&](size_t i) -> Pass<T> {
    return {program_,
            layout_,
            kernels_,
            call.theta,
            memory.tiles[t].primal,
            tile.data,
            width_,
            tile.cols,
            tile.samples,
            i,
            program_.ops_[i],
            tile.columns,
            call.draw != nullptr ? &draw : nullptr,
            scratch.columns.data(),
            scratch.panels.data()};
  });
}

template <typename T>
template <typename F>
void BatchPasses<T>::reverse(const Call& call, const Memory& memory, const Adjoints& adjoints,
                             F norms, size_t part, int64_t t, const BatchScratch<T>& scratch,
                             double* sums) const {
  const BatchTile<T>& tile = call.tiles[t];
  const auto& slots = memory.tiles[t].slots;
  if (part < own_.size()) {
    const Op& op = program_.ops_[own_[part]];
    T* dx = rows(adjoints.rows, op.inputs[0]);
    if (dx != nullptr)
      kernels_.own_norm_reverse(op.outer, op.k, tile.cols, tile.samples, norms(part),
                                slots[op.inputs[0]], rows(adjoints.rows, op.output),
                                !fresh_[own_[part]], dx);
  }
  with_pass(call, memory, t, scratch, [&](const auto& pass) {
    walk_reverse(program_, layout_, span(part), pass, adjoints.rows, scratch.panels.data(), sums,
                 [&](size_t i) { clear_adjoints(adjoints.rows, i, tile.cols); });
  });
  if (part == 0) return;
  const Op& op = program_.ops_[own_[part - 1]];
  if (!reverses(op)) return;
  std::fill_n(adjoints.moments, 2 * op.k, 0.0);
  kernels_.own_norm_sums(op.outer, op.k, tile.cols, tile.samples, norms(part - 1), slots[op.inputs[0]],
                         rows(adjoints.rows, op.output), adjoints.moments);
}

}  // namespace pylandscape
