// First and second derivatives of a Program's loss at one theta.
//
// The values at theta and their adjoints are computed once and kept for as many tiles as `memory` bytes
// hold; of the others they are computed anew for every block of vectors. A Hessian-vector product is
// forward over reverse (Pearlmutter's R-operator): tangents forward, then tangents of the adjoints
// backward. The other matrices are a tangent pass, a new seed, and a reverse pass.
//
// derivatives.cpp is the schedule; passes.cpp walks the ops of a tile, whose own part is in
// program/ops/. Where a slot does not depend on theta (the data, frozen layers), its tangent is zero
// and never computed. Sums over samples are taken in double, in a fixed number of groups of tiles,
// added in order.
//
// Where samples depend on their batch, all of this is done batch by batch (batch_passes.h); there
// are no samples' own gradients then, nor their covariance.
#pragma once
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "derivatives/batch_passes.h"
#include "derivatives/weight_sums.h"
#include "program/program.h"

namespace pylandscape {

// What Derivatives of one Program and one `memory` leave to those that come after them: new memory
// costs a gradient a third of its time.
template <typename T>
struct DerivativeMemory {
  struct Work {  // of one worker
    Primal<T> primal;
    std::vector<Tangents<T>> tangents;
    Buffer<T> columns, panels, dots;
    std::vector<double> sums;  // (n,) of one op's parameters, zeros between uses
    std::vector<Buffer<T>> waiting_panels;  // of each vector, while its direct sums wait
    std::vector<DirectSum<T>> waiting;
  };
  struct BatchWork {  // of one worker, or of all that share a batch
    BatchMemory<T> memory;
    std::vector<BatchScratch<T>> scratch;
    std::vector<BatchTangents<T>> tangents;
  };
  std::vector<Primal<T>> kept;  // by tile; empty where a tile is not kept
  std::vector<BatchMemory<T>> kept_batches;  // by batch
  std::vector<Work> works;
  std::vector<BatchWork> batch_works;
};

template <typename T>
class Heir {  // may be asked from several threads
 public:
  void give(DerivativeMemory<T>&& memory) {
    const std::lock_guard<std::mutex> lock(busy_);
    memory_ = std::move(memory);
  }
  DerivativeMemory<T> take() {
    const std::lock_guard<std::mutex> lock(busy_);
    return std::exchange(memory_, {});
  }

 private:
  std::mutex busy_;
  DerivativeMemory<T> memory_;
};

template <typename T>
class Derivatives {
 public:
  // theta (n,). from: that of Derivatives of the same program and memory, or null. Throws Stopped.
  Derivatives(const Program<T>& program, const T* theta, int64_t memory, Heir<T>* from,
              const Parallel& parallel, const ShouldStop& stop);
  ~Derivatives();
  // Who gets the memory when these end, if it is still there then.
  void leave_to(const std::shared_ptr<Heir<T>>& heir) { heir_ = heir; }

  // Sum of the loss terms over the samples.
  double loss() const { return loss_; }
  // d loss / d theta (n,), of the same sum.
  const std::vector<double>& gradient() const { return gradient_; }
  // Of how many tiles, or batches, the values at theta are kept between products.
  int64_t kept() const { return passes_ ? kept_until_ : keeps_; }
  int64_t n() const { return program_.n(); }

  // out (k, n) = scale A v for the rows of vectors (k, n). False when stopped. Calls wait for each
  // other. For the covariance, this throws std::invalid_argument where samples depend on their
  // batch, and so does the next.
  bool products(Matrix matrix, int64_t k, const T* vectors, double scale, double* out,
                const Parallel& parallel, const ShouldStop& stop);
  // out (k,) = scale v^T A v for the rows v: of a product its tangents forward, and no sums over
  // samples of weights. Else as products().
  bool forms(Matrix matrix, int64_t k, const T* vectors, double scale, double* out,
             const Parallel& parallel, const ShouldStop& stop);
  // out (samples, n): gradients of the samples' own loss terms. False when stopped.
  bool sample_gradients(T* out, const Parallel& parallel, const ShouldStop& stop) const;

 private:
  using Work = typename DerivativeMemory<T>::Work;
  using BatchWork = typename DerivativeMemory<T>::BatchWork;

  void take_batches(int64_t memory, const Parallel& parallel, const ShouldStop& stop);
  bool batch_products(Matrix matrix, int64_t k, const T* vectors, double scale, double* out,
                      const Parallel& parallel, const ShouldStop& stop);
  // take(batch, its tiles, who runs them, what it may use, group) for all batches; group: of those
  // that are divided among groups, else -1. False when stopped.
  template <typename F>
  bool each_batch(const Parallel& parallel, const ShouldStop& stop, F take);
  // Where the groups of a batch's tiles add, of partial (groups_, n): to rows of their own, or, where
  // the batch belongs to a group (each_batch), all to its.
  std::vector<double*> batch_sums(double* partial, int64_t group) const;
  int64_t most_at_once() const;  // vectors
  // vectors_[j] = row j of `vectors` (count, n), as the passes want it.
  void take_vectors(int64_t count, const T* vectors, const Parallel& parallel);
  struct Share {  // of one item of work: vectors first .. last - 1, at the tiles of a group
    int64_t group, first, last;
    const Parallel* helpers;
  };
  // For every share of `count` vectors: begin(work, share), then, if a parameter reaches the output,
  // tile(work, share, t, values at theta) for its tiles in order. False when stopped.
  template <typename Begin, typename Tile>
  bool each_share(int64_t count, const Parallel& parallel, const ShouldStop& stop,
                  const Begin& begin, const Tile& tile);
  void require_apart() const;
  Primal<T> new_primal() const;
  Work& ready(Work& work) const;
  // Whether a tile's values at theta, or those of a batch, are kept between products: of every group
  // about as many.
  bool keeps(int64_t tile) const {
    const int64_t tiles = program_.tiles_;
    return (tile + 1) * keeps_ / tiles > tile * keeps_ / tiles;
  }
  bool keeps_all() const { return keeps_ == program_.tiles_; }
  bool keeps_batch(int64_t batch) const { return batch < kept_until_; }
  int64_t group_begin(int64_t group) const { return group * program_.tiles_ / groups_; }
  using Waiting = std::vector<DirectSum<T>>*;
  // How the ops of a tile are run: what waits, what is late, who helps; see Pass.
  struct Mode {
    const Parallel* helpers = nullptr;
    Waiting waiting = nullptr;
    const LateSums* late = nullptr;
  };
  Pass<T> pass(int64_t tile, const Primal<T>& primal, size_t number, const Mode& mode) const;
  const T* output(const Primal<T>& primal) const;
  T* output_part(const Buffer<T>& rows) const;  // of adjoints or tangents; null: does not move

  // gradient_ += the late sums of the tiles from `from` to before `to` of every group; what they
  // are of is kept, or in `waiting` (groups, run). False when stopped.
  bool add_late(int64_t from, int64_t to, const std::vector<Buffer<T>>& waiting,
                const Parallel& parallel, const ShouldStop& stop, NextPoll& poll);
  // Values, then adjoints; gradient (n,) += this tile's but the late ones. Returns the tile's loss.
  double primal(int64_t tile, Primal<T>& to, double* gradient, const Parallel* helpers) const;
  void forward(int64_t tile, Primal<T>& to, const Mode& mode) const;
  // Adjoints of everything from the output's, already in place; parameters' += in gradient.
  void reverse(int64_t tile, const Primal<T>& primal, const Buffer<T>& adjoints, T* panels,
               double* gradient, const Mode& mode) const;
  void tangent_forward(int64_t tile, const Primal<T>& primal, const Vector<T>& v,
                       const Tangents<T>& to, const Mode& mode) const;
  void tangent_reverse(int64_t tile, const Primal<T>& primal, const Vector<T>& v,
                       const Tangents<T>& tangents, const Work& work, T* panels, double* out,
                       const Mode& mode) const;
  // v^T A v of the tile's loss, from its tangents along v and the seed; these adjoints are written
  // over. vector: v as it was given.
  double form(Matrix matrix, int64_t tile, const Primal<T>& primal, const Vector<T>& v,
              const T* vector, const Tangents<T>& tangents, Work& work, const Mode& mode) const;
  // The output's adjoint from its tangent: how the matrices differ.
  void seed(Matrix matrix, int64_t tile, const Primal<T>& primal, const Tangents<T>& tangents,
            const Work& work) const;
  void add_sample_gradients(int64_t tile, const Primal<T>& primal, T* out) const;

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  int64_t groups_;
  bool divisible_;  // its tiles, among threads
  TileLayout layout_;
  LateSums late_;
  std::optional<BatchPasses<T>> passes_;  // where samples depend on their batch
  bool apart_ = false;                    // batches are divided among the groups
  int64_t block_ = 1;  // vectors that a tile, or a batch, takes together
  Vector<T> theta_;
  DerivativeMemory<T> memory_;
  int64_t keeps_ = 0;       // tiles
  int64_t kept_until_ = 0;  // batches before this one
  std::vector<Primal<T>>& kept_ = memory_.kept;
  std::vector<BatchMemory<T>>& kept_batches_ = memory_.kept_batches;
  std::weak_ptr<Heir<T>> heir_;
  double loss_ = 0;
  std::vector<double> gradient_;

  std::mutex busy_;  // scratch of products
  std::vector<Work>& works_ = memory_.works;
  std::vector<BatchWork>& batch_works_ = memory_.batch_works;
  std::vector<Vector<T>> vectors_;
  std::vector<double> partial_;
};

}  // namespace pylandscape
