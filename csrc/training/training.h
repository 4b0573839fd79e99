// Runs of an optimiser over mini-batches of a Program's data: P runs advance by T steps.
//
// A step's gradient is that of its mini-batch's loss by its own denominator: the passes of
// derivatives/ over the batch's tiles, then one pass over theta and the optimiser's slots. A batch
// that is the same for all runs is gathered once. Runs are the work items; where there are fewer
// than threads, the tiles of a step are.
//
// A run's bits depend on nothing but the run: not on threads, on the runs beside it, or on how the
// steps are cut into calls. Tiles follow from the batch's size, and their sums are taken in a fixed
// number of groups, added in order.
#pragma once
#include <memory>
#include <mutex>

#include "derivatives/passes.h"
#include "training/batches.h"
#include "training/rule.h"

namespace pylandscape {

// Of P runs: theta (runs, n), the rule's slots (runs, n) each, changed in place.
template <typename T>
struct Runs {
  int64_t count;
  T* theta;
  std::vector<T*> slots;
  int64_t done;  // steps before
};

template <typename T>
class Training {
 public:
  // counts: see Batches. Throws std::invalid_argument where samples depend on their batch.
  Training(const Program<T>& program, const Rule& rule, const double* counts);

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
    std::vector<double> sums, partial, stage;
    std::vector<T> moved;
  };
  // How the groups of a step run: body(worker, group).
  using Groups = std::function<void(int64_t, const std::function<void(int, int64_t)>&)>;

  double gradient(const Gathered<T>& batch, const T* theta, Work& work, const Groups& groups,
                  double* sums);
  double tile(const Gathered<T>& batch, int64_t number, const Vector<T>& theta, Tile& to,
              double* sums) const;
  void step(const Runs<T>& runs, int64_t run, int64_t number, double rate,
            const Gathered<T>& batch, Work& work, const Groups& groups, double* loss);

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  Rule rule_;
  int64_t widest_;
  TileLayout layout_;
  Batches<T> batches_;

  std::mutex busy_;
  std::vector<Work> works_;
  std::vector<Gathered<T>> gathered_;
};

}  // namespace pylandscape
