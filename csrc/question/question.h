// A Question to a Program: its losses at many points, which are theta moved along directions, or free.
//
// What is the same at all points is computed once (program/plan.h); the rest runs tile by tile, with
// the samples as vector lanes. question.cpp plans and runs it; lanes.cpp is for few samples and
// parameters, where the points are lanes too; batches.cpp is for batch norm that takes each batch's
// own statistics.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "program/plan.h"
#include "program/program.h"
#include "question/call.h"
#include "question/spread.h"

namespace pylandscape {

template <typename T>
class Question {
 public:
  // Points theta + sum_j c_j directions[j]; theta (n,), directions (k, n). Both are read here only.
  // Throws Stopped.
  Question(const Program<T>& program, const T* theta, const T* directions, int64_t k,
           const Parallel& parallel, const ShouldStop& stop);
  // Arbitrary points.
  Question(const Program<T>& program, const Parallel& parallel, const ShouldStop& stop);

  // coordinates (g, k) coefficients, or (g, n) points. loss, correct (g,): sums over the samples;
  // correct may be null. outputs (g, samples, features) may be null, and so may `asked`, which no
  // batch norm of a batch's own statistics allows. False when stopped.
  bool run(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
           const SampleLosses* asked, const Parallel& parallel, const ShouldStop& stop) const;

  // points (g, n): the thetas, in which the kept statistics are those of the point: of the mean and
  // of the unbiased variance, the averages over the batches (as running averages start anew with
  // momentum 1 / count). False when stopped.
  bool collect(int64_t g, const T* coordinates, T* points, const Parallel& parallel,
               const ShouldStop& stop) const;

  int64_t k() const { return k_; }
  int64_t bytes() const;  // held by the question
  std::string describe() const;

 private:
  struct Step {
    How how;
    std::vector<int> moves;  // combine: the directions that move the weight
    Buffer<T> z;             // combine: (tiles, 1 + moves, m, tile)
  };
  struct Worker {  // one thread's memory during a run
    Buffer<T> arena, room;
    Buffer<double> scratch;
    std::vector<const T*> slots, z, rows;
    std::vector<T> own;
  };

  struct Batch {  // one thread's memory for a batch
    Buffer<T> arena;              // (tiles, arena rows, tile)
    std::vector<double> moments;  // (tiles, 2, channels)
    std::vector<double> mean, variance;  // (channels,); variance without the division by the count
  };
  // Runs body(worker, tile) on a batch's tiles; false when stopped.
  using EachTile = std::function<bool(int64_t, const std::function<void(int, int64_t)>&)>;

  Moves find_moves(const T* directions) const;
  void choose_steps(const Moves& moves);
  void place_weights(const T* directions);
  void compute_static(const T* directions, const Parallel& parallel, const ShouldStop& stop);
  void expand_lanes();
  int64_t table_size(const Op& op) const;
  void fill_table(const Op& op, T* weights, T* table) const;
  void fill_weights(int64_t point, int64_t part, const T* coordinates, T* weights) const;
  // What a tile of a point gives besides its sums: where the point's tallies (2,) go.
  struct Asked {
    const SampleLosses* of;  // null: nothing
    int64_t point;
    double share;  // the tile's denominators, summed
    Tally* to;     // of the losses, of the differences
  };
  void run_tile(int64_t tile, const T* c, const T* weights, Worker& worker, double* loss,
                double* correct, T* outputs, const Asked& asked) const;
  // The slots of a tile, then its ops first .. last - 1, then its loss.
  void find_slots(int64_t tile, T* arena, Worker& worker) const;
  void run_ops(size_t first, size_t last, int64_t tile, const T* c, const T* weights, T* arena,
               Worker& worker) const;
  void finish_tile(int64_t tile, Worker& worker, double* loss, double* correct, T* outputs,
                   const Asked& asked) const;
  void call(const Op& op, int64_t cols, const T* const* slots, const T* weights, T* out,
            T* room) const;
  Buffer<T> make_room() const;  // for the ops that want some (Call::room)
  void combine(const Op& op, const Step& step, int64_t tile, const T* c, const T* weights,
               Worker& worker, T* out) const;
  const T* use_data(int use, const T* weights) const;
  bool run_tiles(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
                 const SampleLosses* asked, const Parallel& parallel, const ShouldStop& stop) const;
  bool run_lanes(int64_t g, const T* coordinates, double* loss, double* correct,
                 const SampleLosses* asked, const Parallel& parallel, const ShouldStop& stop) const;
  // Points in groups whose weights fit: body(first, count, weights), after they are filled.
  bool run_groups(int64_t g, const T* coordinates, const Parallel& parallel,
                  const ShouldStop& stop,
                  const std::function<bool(int64_t, int64_t, const T*)>& body) const;
  bool run_batches(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
                   T* points, const Parallel& parallel, const ShouldStop& stop) const;
  bool run_batch(int64_t batch, const T* c, const T* weights, std::vector<Worker>& workers,
                 Batch& memory, const EachTile& each, double* kept, double* sums,
                 T* outputs) const;
  void moments(const Op& op, int64_t first, int64_t last, Batch& memory) const;
  std::vector<T> own_affine(const Op& op, const T* weights, const Batch& memory,
                            double count) const;
  void average(const double* kept, T* point) const;
  void run_block(int64_t first, int64_t count, const T* coordinates, Worker& worker, double* loss,
                 double* correct, const SampleLosses* asked) const;
  void tally_block(int64_t first, int64_t count, const double* losses,
                   const SampleLosses& asked) const;

  const Program<T>& program_;
  int64_t k_;
  bool points_;
  std::vector<bool> moved_;            // by use
  std::vector<int64_t> weight_place_;  // offset in a point's weights; -1: no kernel reads it there
  std::vector<int64_t> table_place_;   // by table; -1: the same at all points
  int64_t perturbed_size_ = 0;         // the uses of a point, before its tables
  int64_t weights_size_ = 0;
  Buffer<T> base_;        // packed theta
  Buffer<T> moved_base_;  // (perturbed_size,), directions likewise
  std::vector<Buffer<T>> tables_;  // by table, where it is the same at all points
  std::vector<Buffer<T>> moved_directions_;
  std::vector<Step> steps_;       // by op
  std::vector<size_t> own_;       // ops that take the statistics of the batch
  int64_t kept_channels_ = 0;     // of all ops whose statistics are kept
  std::vector<Buffer<T>> cache_;  // by slot: (tiles, features, tile) where a static slot is read
  // point lanes
  std::vector<T> source_base_;  // theta (zero for free points), then the constants
  std::vector<std::vector<T>> source_directions_;
  Buffer<T> lane_x_;
  Buffer<int32_t> lane_index_;
  Buffer<double> lane_dense_;
};

}  // namespace pylandscape
