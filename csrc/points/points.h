// Loss, gradient, Hessian and eigenvalues of a Program at many points, which are the vector lanes.
//
// Every value is a row (samples, lanes). The parameters of a linear op enter through its output
// z = W x + b, so the Hessian needs tangents only along the rows of z, not along every parameter.
// With R the derivative along row i of op l, and g the adjoints,
//   d^2 L / dW_l[i,j] dW_m[p,q] = sum over samples of x_l[j] (R g_m[p] x_m[q] + g_m[p] R x_m[q])
// for every op m from l on, and the second term is zero for m = l: each pair of parameters is met
// once, and is mirrored. Parameters that scale or shift (layer norm, batch norm) become rows of
// their own that multiply and add.
//
// A point's numbers depend on nothing but the point: not on threads, chunks or the other lanes.
#pragma once
#include <memory>
#include <mutex>
#include <optional>

#include "points/eigenvalues.h"
#include "points/passes.h"
#include "points/walk.h"
#include "program/program.h"

namespace pylandscape {

class Points {
 public:
  // Throws std::invalid_argument, with the reason, for a program that lanes of points do not serve.
  explicit Points(const Program<double>& program);

  // points (count, n) -> losses (count,), gradients (count, n), hessians (count, n, n) and their
  // eigenvalues (count, n), each of which but the first may be null: of the summed loss terms over
  // `denominator`. Where the loss or the point is not finite, derivatives are NaN. False when
  // stopped. Calls wait for each other.
  bool run(int64_t count, const double* points, double denominator, double* losses,
           double* gradients, double* hessians, double* eigenvalues, const Parallel& parallel,
           const ShouldStop& stop);

  // Walks on from point `first` of each to point end - 1: there, losses and norms are filled in too
  // unless `known`. False when stopped. `lost`: a point with a finite loss has derivatives that are not;
  // what was filled in does not count then.
  bool walk(const WalkRule& rule, const WalkArrays& walks, int64_t first, int64_t end, bool known,
            double denominator, bool* lost, const Parallel& parallel, const ShouldStop& stop);

  // Tangent passes of a Hessian; and whether n is small enough for one.
  int64_t tangents() const { return tangents_; }
  bool able() const { return able_; }

 private:
  friend class HessianPlanner;
  friend class LaneTraining;
  using Step = PointStep;
  using Block = PointBlock;
  struct Worker : PointWorker {
    Buffer<double> dense, ones, zeros, terms, scratch;
    Buffer<int32_t> index;
    int64_t loaded = -1, loaded_block = 0;  // the block of samples in x, unless it has all; its size
    const int32_t* indices = nullptr;       // of the block at hand
    const double* targets = nullptr;
    Buffer<double> loss, gradient, hessian;
    std::optional<EigenWork> eigen;
    Buffer<double> uniform, draws;  // of walks: lengths and coins (2, n, lanes); as they are drawn
  };

  void lower();
  void check_untied() const;
  void plan();
  void find_adjoints();
  Worker& ready(Worker& worker, bool hessian) const;
  const Parallel& pool_of(int64_t groups, double passes, const Parallel& parallel);
  void finish_losses(int64_t count, double denominator, const Worker& worker, double* losses,
                     int64_t step, bool* finite) const;
  void load_rows(int64_t count, const double* rows, int64_t step, double* to) const;
  void store_rows(int64_t count, const double* from, double* rows, int64_t step) const;
  bool evaluate_walks(const WalkArrays& walks, int64_t first, int64_t count, int64_t at,
                      double denominator, Worker& worker) const;
  void step_walks(const WalkRule& rule, const WalkArrays& walks, int64_t first, int64_t count,
                  int64_t at, Worker& worker) const;
  void group(int64_t count, const double* points, double denominator, double* losses,
             double* gradients, double* hessians, double* eigenvalues, Worker& worker) const;
  void write(int64_t count, int64_t size, double scale, const double* x, const bool* finite,
             double* out) const;
  void load_block(int64_t number, int64_t size, const Block& block, Worker& worker) const;
  void fill_block(const Block& block, int64_t first, Worker& worker) const;
  void sums(int64_t size, bool gradient, bool second, Worker& worker) const;
  bool holds_all() const;  // whether a worker's x holds all samples

  // point_passes.cpp: the four passes over the steps, each of which is in program/ops/; and the sums
  // over samples of what the parameters' derivatives are made of.
  void forward(const Block& b, Worker& w) const;
  void clear(size_t from, const Buffer<double>& rows, const Block& b) const;
  void reverse(const Block& b, Worker& w) const;
  void tangent_forward(size_t from, int64_t row, const Block& b, Worker& w) const;
  void tangent_reverse(size_t from, int64_t row, const Block& b, Worker& w) const;
  void gradient_add(const Step& step, const Block& b, Worker& w) const;
  void hessian_add(const PointTangentReverse& p, const Step& origin, int64_t row, Worker& w) const;
  cpu::Targets targets(const Worker& w) const;
  PointTile tile(const Block& b, Worker& w) const { return {slots_, kernels_, points_, b, w}; }

  const double* value(const Worker& w, const Block& b, int slot) const {
    return slot == 0 ? w.data : part(w.rows.values, b, slot);
  }
  double* part(const Buffer<double>& rows, const Block& b, int slot) const {
    return rows.data() + slots_.row[slot] * b.cols;
  }

  const Program<double>& program_;
  const cpu::Kernels<double>& kernels_;
  const cpu::PointKernels& points_;
  int64_t lanes_, n_, rows_ = 0, bent_rows_ = 0, tangents_ = 0;
  int64_t block_ = 1, gradient_block_ = 1;  // samples at once; without Hessians
  bool able_ = false;
  bool ordered_ = true;  // whether the places of a Hessian that are filled are its lower triangle
  double work_ = 0;  // multiplications of a point's gradient, roughly
  std::vector<Step> steps_;
  PointSlots slots_;
  int output_ = -1;
  std::vector<int32_t> rank_;  // by parameter: of a pair's two places the row of the larger is filled
  const Parallel here_{1, [](const std::function<void(int)>& body) { body(0); }};
  std::mutex busy_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace pylandscape
