// Runs of an optimiser over mini-batches of a Program's data: P runs advance by T steps.
//
// A step's gradient is that of its mini-batch's loss by its own denominator: the passes of
// derivatives/ over the batch's tiles, then one pass over theta and the optimiser's slots. A batch
// that is the same for all runs is gathered once. Runs are the work items; where there are fewer
// than threads, the tiles of a step are.
//
// Where samples depend on their batch (batch norm in train mode), a mini-batch goes through all of its
// tiles from one such norm to the next (derivatives/batch_passes.h), and the norms' running
// statistics move. Dropouts are drawn by the run's seed, the step and the sample's place in the
// mini-batch.
//
// A run's bits depend on nothing but the run: not on threads, on the runs beside it, or on how the
// steps are cut into calls. Tiles follow from the batch's size, and their sums are taken in a fixed
// number of groups, added in order.
#pragma once
#include <memory>
#include <mutex>

#include "derivatives/batch_passes.h"
#include "training/batches.h"
#include "training/rule.h"

namespace pylandscape {

// Of P runs: theta (runs, n), the rule's slots (runs, n) each, running statistics (runs, m), all
// changed in place; the seeds of their dropouts (runs,).
template <typename T>
struct Runs {
  int64_t count;
  T* theta;
  std::vector<T*> slots;
  int64_t done;  // steps before
  T* statistics = nullptr;
  const int64_t* seeds = nullptr;
};

template <typename T>
class Training {
 public:
  // counts: see Batches. statistics: how many of the program's last parameters are running
  // statistics of its norms, which the rule does not move.
  Training(const Program<T>& program, const Rule& rule, const double* counts, int64_t statistics);

  int slots() const { return rule_.slots(); }
  // rates (steps,), losses (runs, steps): of each mini-batch before its step. False when stopped:
  // then some runs are further than others.
  bool advance(const Runs<T>& runs, const std::vector<Indices>& steps, const double* rates,
               double* losses, const Parallel& parallel, const ShouldStop& stop);

 private:
  struct Tile {  // scratch of one tile
    Primal<T> primal;
    std::vector<double> terms;
    std::vector<const T*> slots;
  };
  struct Work {  // of one worker
    Vector<T> theta;
    Tile tile;
    Gathered<T> batch;  // of a run's own order
    BatchMemory<T> memory;
    std::vector<BatchScratch<T>> scratch;
    std::vector<double> sums, partial, stage;
    std::vector<T> moved, whole;
  };

  double gradient(const Gathered<T>& batch, const T* theta, T* statistics, int64_t before,
                  const Draw& draw, Work& work, const Groups& groups, const Parallel& threads,
                  double* sums);
  double tile(const Gathered<T>& batch, int64_t number, const Vector<T>& theta, const Draw& draw,
              Tile& to, const Parallel* helpers, double* sums) const;
  double whole_batch(const Gathered<T>& batch, const Draw& draw, Work& work, const Groups& groups,
                     double* const* sums) const;
  void move_statistics(const BatchMemory<T>& memory, int64_t size, int64_t before,
                       T* statistics) const;
  void step(const Runs<T>& runs, int64_t run, int64_t number, double rate,
            const Gathered<T>& batch, Work& work, const Groups& groups, const Parallel& threads,
            double* loss);

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  Rule rule_;
  int64_t n_, statistics_;  // parameters, and running statistics after them
  int64_t widest_;
  TileLayout layout_;
  Batches<T> batches_;
  BatchPasses<T> passes_;
  bool mixes_;
  bool divisible_;  // a tile, among threads

  std::mutex busy_;
  std::vector<Work> works_;
  std::vector<Gathered<T>> gathered_;
};

}  // namespace pylandscape
