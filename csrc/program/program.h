// The Program: a network and its loss as a short list of ops, over data that it holds.
//
// Values are slots: (features, cols) matrices, one per tile of samples (cpu/kernels.h). Parameters
// are read from a flat source vector through uses: a use is one parameter seen by one kind of op,
// stored where the kernels want it ("packed"). A Question fixes theta and the directions, computes
// once what no point changes, and then answers any number of points; a Program is never changed by
// a Question, so several may run at once.
//
// Results do not depend on the number of threads, on how points are chunked, or on the order in
// which work items run: a tile's arithmetic is fixed by shapes, its loss is summed column by column
// in double, and tiles are added in order.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace pylandscape {

// Runs body(worker) for worker = 0 .. count-1, possibly at once, and waits.
struct Parallel {
  int workers = 1;
  std::function<void(const std::function<void(int)>& body)> run;
};
// Asked now and then on the calling thread; true stops the work.
using ShouldStop = std::function<bool()>;

template <typename T>
class Buffer {  // 64-byte aligned, zeroed
 public:
  Buffer() = default;
  explicit Buffer(int64_t count);
  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

enum class OpKind : int {
  kLinear,
  kUnary,
  kBinary,
  kLayerNorm,
  kSoftmax,
  kConcat,
  kExpand,
  kGather,
  kConv,
  kBatchNorm,
  kPool,
  kMatmul,
  kGroupNorm,
  kEmbedding,
  kCell,
  kLookup,  // a linear op on an embedding, read from the table of its products
};

// Batch norm with given statistics, as uses: (x - mean) / sqrt(variance + eps) * gain + shift; or
// with the batch's own, which may be kept: sources in theta that Question::collect fills.
struct Norm {
  int gain = -1, shift = -1, mean = -1, variance = -1;
  double eps = 0;
  bool own = false;
  int64_t keep_mean = -1, keep_variance = -1;
  bool on() const { return mean >= 0; }
};

// Some consecutive rows of a slot.
struct Rows {
  int64_t first, count;
};

struct Op {
  Op(OpKind op_kind, std::vector<int> slots) : kind(op_kind), inputs(std::move(slots)) {}
  OpKind kind;
  std::vector<int> inputs;  // slots; of a conv, the second is added to the result
  int output = -1;          // slot
  int weight = -1, bias = -1;  // uses
  // lookup: the embedding (weight) and a linear op's weight, transposed; which of the tables
  int second = -1, table = -1;
  cpu::Unary unary{};
  cpu::Binary binary{};
  cpu::Cell cell{};
  bool relu = false;  // max(., 0) at the end
  bool log = false;   // softmax
  double a = 0, b = 0;
  // linear: (outer, k) -> (outer, m); layer_norm: (outer, k); softmax: (outer, k, inner);
  // group_norm: `outer` groups of k rows at `inner` pixels;
  // concat: outer groups of the inputs' features one after the other.
  // embedding: a weight (m, k), one row of it for each of index's rows; b = the row that gets no
  // derivative, or -1. cell: k = hidden size.
  int64_t outer = 1, k = 0, m = 0, inner = 1;
  // expand: feature f is element index[f] of the weight use. gather: feature index[f] of the input,
  // or the constant `a` where that is -1. pool: see cpu::PoolArgs; k channels.
  // embedding: the rows of the data that hold its ids.
  std::vector<int64_t> index, bounds;
  std::vector<double> factor;
  cpu::Pool pool{};
  // matmul: scale `a`; the first rows of each of `outer` are in x_, y_ and z_outer.
  cpu::MatmulArgs strides{};
  std::vector<int64_t> x_outer, y_outer, z_outer;
  cpu::MatmulArgs matmul() const {
    cpu::MatmulArgs found = strides;
    found.x_outer = x_outer.data(), found.y_outer = y_outer.data(), found.z_outer = z_outer.data();
    return found;
  }
  // linear, concat (of outer = 1), cell: each input's first row, and how many; empty means whole.
  std::vector<Rows> rows;
  cpu::ConvArgs conv{};
  Norm norm;  // batch_norm over (outer, k); conv: after it

  cpu::NormArgs norm_args() const {
    const bool groups = kind == OpKind::kGroupNorm;
    return {outer, k, a, groups ? inner : 1, groups};
  }
  cpu::PoolArgs pool_args() const {
    return {pool,          static_cast<int64_t>(bounds.size()) - 1,          k,
            bounds.data(), index.data(), factor.empty() ? nullptr : factor.data()};
  }
  int64_t first(size_t input) const { return rows.empty() ? 0 : rows[input].first; }
  template <typename F>
  void each_use(F f) const {
    for (const int use : {weight, bias, second, norm.gain, norm.shift, norm.mean, norm.variance})
      if (use >= 0) f(use);
  }
};

// One parameter as one kind of op reads it. source >= 0: offset in theta; source < 0: offset
// -1 - source in the constants.
struct Use {
  int64_t source, rows, cols;
  // kTransposed: as kPanels, but the source holds the transpose (cols, rows). kColumns: the
  // transpose as it stands.
  enum class Packing { kPlain, kPanels, kConv, kTransposed, kColumns } packing;
  int64_t packed;        // offset in the packed vector, a multiple of 16
  cpu::ConvArgs conv{};  // kConv: of which only groups, channels, rows and kernel count
  int64_t size() const { return rows * cols; }
  bool transposed() const { return packing == Packing::kTransposed; }
};

// y row f = x row index[f], or `fill`; rows of cols elements.
template <typename T>
void gather_rows(const std::vector<int64_t>& index, int64_t cols, T fill, const T* x, T* y);
// f(first, from, count) for the runs of consecutive entries: index[first + i] = from + i, or all -1.
template <typename F>
void each_run(const std::vector<int64_t>& index, F f) {
  const int64_t size = static_cast<int64_t>(index.size());
  for (int64_t first = 0, last = 0; first < size; first = last) {
    const int64_t from = index[first], step = from < 0 ? 0 : 1;
    for (++last; last < size && index[last] == from + step * (last - first);) ++last;
    f(first, from, last - first);
  }
}

template <typename T>
class Program {
 public:
  // n: length of theta. constants: values of parameters and buffers that no point moves.
  Program(int64_t n, std::vector<T> constants);

  // Building: each call checks its arguments (std::invalid_argument) and returns the output slot.
  // Slot 0 is the input, created by the constructor of the data; parameters are given by source.
  int input(int64_t features);
  // More constants; the source of the first.
  int64_t constants(int64_t count, const double* values);
  // Weight (m, k), or (k, m) where transposed. Reads x, or outer * k rows of it from row `first` on.
  int linear(int x, int64_t outer, int64_t k, int64_t m, int64_t weight, const int64_t* bias,
             int64_t first = -1, bool transposed = false);
  int unary(int x, cpu::Unary f, double a, double b);
  int binary(cpu::Binary op, int x, int y);
  int layer_norm(int x, int64_t outer, int64_t size, double eps, const int64_t* gain,
                 const int64_t* shift);
  // Over rows (pixels, channels); gain and shift (channels,).
  int group_norm(int x, int64_t groups, int64_t pixels, int64_t channels, double eps,
                 const int64_t* gain, const int64_t* shift);
  int softmax(int x, bool log, int64_t outer, int64_t size, int64_t inner);
  int concat(const std::vector<int>& inputs, int64_t outer);
  // Rows of slots, one after the other.
  int join(const std::vector<int>& inputs, std::vector<Rows> rows);
  int expand(int64_t source, int64_t size, std::vector<int64_t> index);
  int gather(int x, std::vector<int64_t> index, double fill);
  // Over rows (in_h, in_w, groups * channels); out_h and out_w are found here.
  int conv(int x, cpu::ConvArgs args, int64_t weight, const int64_t* bias);
  // z (outer, m, n) = scale x y for the elements that `a` names; z has exactly these rows.
  int matmul(int x, int y, const cpu::MatmulArgs& a, double scale);
  // Over rows (outer, channels).
  int batch_norm(int x, int64_t outer, int64_t channels, double eps, int64_t mean, int64_t variance,
                 const int64_t* gain, const int64_t* shift);
  // Over pixels of `channels` rows. bounds (outputs + 1,) into index, factor (outputs,) or empty.
  int pool(int x, cpu::Pool mode, int64_t channels, std::vector<int64_t> bounds,
           std::vector<int64_t> index, std::vector<double> factor);
  // The same with the statistics of the batch, kept where both sources are given.
  int batch_norm_own(int x, int64_t outer, int64_t channels, double eps, const int64_t* gain,
                     const int64_t* shift, const int64_t* keep_mean, const int64_t* keep_variance);

  // Of each of `rows` of the data, which hold ids below `count`, its row of the weight (count, size).
  // Row `padding` (-1: none) moves the loss but gets no derivative, as in torch.
  int embedding(std::vector<int64_t> rows, int64_t count, int64_t size, int64_t padding,
                int64_t weight);
  // One step of a recurrent cell (cpu/kernels.h) over `hidden` units. x and h: slots with the
  // products of its input and of its last hidden state; state: the slot with its last state, from
  // row `first` on.
  int cell(cpu::Cell kind, int64_t hidden, int x, int h, int state, int64_t first);

  // Ends the building: `output` is the network's result. weight and pos_weight may be empty.
  void finish(int output);
  // How many samples each batch has, before the data; without it they are one batch.
  void set_batches(std::vector<int64_t> sizes);
  // x (samples, features) row-major.
  void set_data(int64_t samples, const T* x);
  // index (samples, outer, inner) with -1 where a target does not count, or dense (samples,
  // features); the outputs' features are (outer, classes, inner).
  void set_loss(cpu::Loss kind, int64_t classes, int64_t inner, double label_smoothing,
                std::vector<double> weight, std::vector<double> pos_weight, const int64_t* index,
                const double* dense, int64_t outer = 1);

  int64_t n() const { return n_; }
  int64_t samples() const { return samples_; }
  int64_t features(int slot) const { return slots_.at(slot); }
  int64_t tile() const { return tile_; }
  int64_t tiles() const { return tiles_; }
  bool lanes() const { return lanes_; }  // point lanes (few samples, few parameters)
  bool mixes() const;  // whether a sample's outputs depend on its batch
  int output() const { return output_; }
  const std::vector<Op>& ops() const { return ops_; }
  // As they run: with batch norm and sums moved into convolutions, and lookups (after set_data).
  const std::vector<Op>& fused() const { return fused_; }
  const std::vector<int64_t>& batches() const { return batches_; }  // samples of each
  const std::vector<Use>& uses() const { return uses_; }
  const std::vector<T>& constants() const { return constants_; }

 private:
  template <typename>
  friend class Question;
  template <typename>
  friend class Derivatives;
  template <typename>
  friend class ResidentPlanner;
  friend class Points;
  friend class HessianPlanner;

  int slot(int64_t features);
  int use(int64_t source, int64_t rows, int64_t cols,
          Use::Packing packing = Use::Packing::kPlain, const cpu::ConvArgs& conv = {});
  int64_t in_features(int s) const;
  void drop_unread(std::vector<Op>& ops) const;
  void fuse_lookups();
  std::vector<int> readers() const;  // by slot
  void fuse_relu();
  void fuse_epilogues();
  void plan_arena();
  void plan_tiles();
  // Uses from a source vector (theta or a direction; null constants mean zero) into dst.
  void pack(const Use& use, const T* theta, const T* constants, T* dst) const;
  int64_t tile_columns(int64_t tile) const;  // columns that carry samples
  int64_t padded_columns(int64_t tile) const;
  int64_t most_batch_tiles() const;

  const cpu::Kernels<T>& kernels_;
  int64_t n_, samples_ = 0, tile_ = 0, tiles_ = 0, packed_size_ = 0, arena_rows_ = 0;
  std::vector<T> constants_;
  std::vector<int64_t> slots_;  // features of each slot
  std::vector<int64_t> place_;  // arena row of each slot, -1 for the input
  std::vector<Op> ops_;
  std::vector<Op> fused_;  // the same with batch norm and sums moved into convolutions, and lookups
  std::vector<Op> tables_;  // one of the lookups of each table (m columns for each of `outer` ids)
  std::vector<Use> uses_;
  int output_ = -1;
  bool lanes_ = false;
  std::vector<int64_t> batches_;     // samples of each
  std::vector<int64_t> tile_first_;  // (tiles + 1,) its first sample
  std::vector<int64_t> batch_tile_;  // (batches + 1,) its first tile
  Buffer<T> x_;  // (tiles, features, tile)
  cpu::LossArgs loss_{};
  std::vector<double> weight_, pos_weight_;
  int64_t target_rows_ = 0;
  Buffer<int32_t> index_;  // (tiles, outer * inner, tile)
  Buffer<double> dense_;   // (tiles, features, tile)
};

template <typename T>
class Question {
 public:
  // Points theta + sum_j c_j directions[j]; theta (n,), directions (k, n). Both are read here only.
  Question(const Program<T>& program, const T* theta, const T* directions, int64_t k,
           const Parallel& parallel);
  // Arbitrary points.
  Question(const Program<T>& program, const Parallel& parallel);

  // coordinates (g, k) coefficients, or (g, n) points. loss, correct (g,): sums over the samples;
  // correct may be null. outputs (g, samples, features) may be null. False when stopped.
  bool run(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
           const Parallel& parallel, const ShouldStop& stop) const;

  // points (g, n): the thetas, in which the kept statistics are those of the point: of the mean and
  // of the unbiased variance, the averages over the batches (as running averages start anew with
  // momentum 1 / count). False when stopped.
  bool collect(int64_t g, const T* coordinates, T* points, const Parallel& parallel,
               const ShouldStop& stop) const;

  int64_t k() const { return k_; }
  int64_t bytes() const;  // held by the question
  std::string describe() const;

 private:
  enum class How { kStatic, kKernel, kCombine };
  struct Step {
    How how;
    std::vector<int> moves;  // combine: the directions that move the weight
    Buffer<T> z;             // combine: (tiles, 1 + moves, m, tile)
  };
  struct Worker {  // one thread's memory during a run
    Buffer<T> arena;
    Buffer<double> scratch;
    std::vector<const T*> slots, z;
    std::vector<T> own;
  };

  struct Batch {  // one thread's memory for a batch
    Buffer<T> arena;              // (tiles, arena rows, tile)
    std::vector<double> moments;  // (tiles, 2, channels)
    std::vector<double> mean, variance;  // (channels,); variance without the division by the count
  };
  // Runs body(worker, tile) on a batch's tiles; false when stopped.
  using EachTile = std::function<bool(int64_t, const std::function<void(int, int64_t)>&)>;

  void find_moved(const T* directions);
  void plan_steps(const T* directions);
  void place_weights(const T* directions);
  void compute_static(const T* directions, const Parallel& parallel);
  void expand_lanes();
  int64_t table_size(const Op& op) const;
  void fill_table(const Op& op, T* weights, T* table) const;
  void fill_weights(int64_t point, int64_t part, const T* coordinates, T* weights) const;
  void run_tile(int64_t tile, const T* c, const T* weights, Worker& worker, double* loss,
                double* correct, T* outputs) const;
  // The slots of a tile, then its ops first .. last - 1, then its loss.
  void find_slots(int64_t tile, T* arena, Worker& worker) const;
  void run_ops(size_t first, size_t last, int64_t tile, const T* c, const T* weights, T* arena,
               Worker& worker) const;
  void finish_tile(int64_t tile, Worker& worker, double* loss, double* correct, T* outputs) const;
  void apply(const Op& op, int64_t cols, const T* const* slots, const T* weights, T* out) const;
  const T* use_data(int use, const T* weights) const;
  std::vector<T> norm_affine(const Op& op, const T* weights) const;
  bool run_tiles(int64_t g, const T* coordinates, double* loss, double* correct, T* outputs,
                 const Parallel& parallel, const ShouldStop& stop) const;
  bool run_lanes(int64_t g, const T* coordinates, double* loss, double* correct,
                 const Parallel& parallel, const ShouldStop& stop) const;
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
                 double* correct) const;

  const Program<T>& program_;
  int64_t k_;
  bool points_;
  std::vector<bool> moved_;            // by use
  std::vector<int64_t> weight_place_;  // offset in a point's weights; -1: no kernel reads it there
  std::vector<int64_t> table_place_;   // by table; -1: no point changes it
  int64_t perturbed_size_ = 0;         // the uses of a point, before its tables
  int64_t weights_size_ = 0;
  Buffer<T> base_;        // packed theta
  Buffer<T> moved_base_;  // (perturbed_size,), directions likewise
  std::vector<Buffer<T>> tables_;  // by table, where no point changes it
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
