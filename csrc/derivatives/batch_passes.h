// Loss and gradient of one batch whose samples depend on each other, by batch norm with the batch's
// own statistics.
//
// A batch lies in several tiles, which all go from one such norm to the next: there the tiles'
// moments, and backward the sums over their adjoints, are combined in order. So all values of the
// batch are kept, and what the tiles find does not depend on who runs them.
#pragma once
#include <functional>

#include "derivatives/passes.h"
#include "program/program.h"

namespace pylandscape {

template <typename T>
struct BatchTile {
  const T *data, *columns;  // as in Pass
  int64_t cols, samples, first;  // with padding; without; its first sample in the batch
  cpu::Targets targets;
};

// Runs body(worker, group) for the groups of a batch's tiles, possibly at once, and waits. worker may
// be -1: the caller's own.
using Groups = std::function<void(int64_t groups, const std::function<void(int, int64_t)>& body)>;

// What one batch takes, used again by the next. Buffers grow to the largest.
template <typename T>
struct BatchMemory {
  struct Tile {
    Primal<T> primal;
    std::vector<const T*> slots;
    double loss;
  };
  struct Scratch {  // of one worker
    Buffer<T> panels, columns;
    std::vector<double> terms;
  };
  struct Norm {  // of one own op; (channels,) each
    std::vector<double> mean, variance;  // biased
    std::vector<T> affine;               // (6, channels), in the order of cpu::OwnNorm
    cpu::OwnNorm<T> args;
  };
  std::vector<Tile> tiles;
  std::vector<Scratch> scratch;
  std::vector<Norm> norms;      // in the order of BatchPasses::own
  std::vector<double> moments;  // (tiles, 2, channels) of the op that is on
};

template <typename T>
class BatchPasses {
 public:
  static constexpr int64_t kGroups = 4;  // independent sums over tiles

  // layout: of tiles of `width` columns.
  BatchPasses(const Program<T>& program, const TileLayout& layout, int64_t width);

  // Of the loss terms' sum over the batch; sums[g] (n,) += group g's share of its gradient, for
  // min(kGroups, tiles) groups. draw: of the run, whose `first` is not read; or null.
  double gradient(const std::vector<BatchTile<T>>& tiles, const Vector<T>& theta, const Draw* draw,
                  int workers, const Groups& run, BatchMemory<T>& memory,
                  double* const* sums) const;

  // Ops that take the batch's statistics, in their order; memory.norms is about these.
  const std::vector<size_t>& own() const { return own_; }
  int64_t tile_bytes() const;  // of BatchMemory

 private:
  using Memory = BatchMemory<T>;
  struct Call {  // of gradient()
    const std::vector<BatchTile<T>>& tiles;
    const Vector<T>& theta;
    const Draw* draw;
    Memory& memory;
  };

  void ready(const Call& call, int workers) const;
  size_t begin(size_t part) const { return part > 0 ? own_[part - 1] + 1 : 0; }
  size_t end(size_t part) const;
  typename Memory::Scratch& scratch(Memory& memory, int worker) const;
  // f(pass), where pass(i) is the Pass of op i on tile t.
  template <typename F>
  void with_pass(const Call& call, int64_t t, const typename Memory::Scratch& scratch, F f) const;
  void forward(const Call& call, size_t part, int64_t t,
               const typename Memory::Scratch& scratch) const;
  double loss(const Call& call, int64_t t, typename Memory::Scratch& scratch) const;
  void reverse(const Call& call, size_t part, int64_t t, typename Memory::Scratch& scratch,
               double* sums) const;
  void combine_moments(const Call& call, size_t norm) const;
  void combine_sums(const Call& call, size_t norm, double* sums) const;
  bool reverses(const Op& op) const { return layout_.moves[op.output]; }

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  const TileLayout& layout_;
  int64_t width_;
  std::vector<size_t> own_;
  std::vector<std::vector<int>> cleared_;  // by op: slots whose adjoints it is the first to add to
  std::vector<bool> fresh_;                // by op: an own one that is the first to
};

}  // namespace pylandscape
