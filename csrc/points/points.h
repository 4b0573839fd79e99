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

  // Tangent passes of a Hessian; and whether n is small enough for one.
  int64_t tangents() const { return tangents_; }
  bool able() const { return able_; }

 private:
  friend class HessianPlanner;
  friend class LaneTraining;
  // An op on rows of lanes; its parameters' places are those in Worker::source, or -1.
  struct Step {
    Step(OpKind step_kind, const Op* from, std::vector<int> slots, int to)
        : kind(step_kind), op(from), inputs(std::move(slots)), output(to) {}
    OpKind kind;
    const Op* op;
    std::vector<int> inputs;
    int output;
    bool relu = false, moves = false;
    cpu::Binary binary{};
    int64_t weight = -1, bias = -1, row = 0, column = 0;  // linear: element (r, i) of the weight
    bool weight_moves = false, bias_moves = false;        // whether theta holds them
    std::vector<int64_t> index;                           // expand
    std::vector<double> scale, shift;                     // batch norm
    std::vector<bool> reach;  // slots that depend on the output, where there are parameters
    int64_t bent = 0;         // first row of a unary op in `first` and `curved`
    bool has_parameters() const { return weight_moves || bias_moves; }
  };
  struct Rows {  // of one worker; (rows, samples, lanes)
    Buffer<double> values, adjoints, first, curved, tangents, adjoint_tangents;
  };
  struct Worker {
    Rows rows;
    Buffer<double> source;  // (n + constants, lanes)
    Buffer<double> x, dense, ones, zeros, terms, scratch, unused;
    Buffer<int32_t> index;
    int64_t loaded = -1;  // the block of samples in x
    Buffer<double> loss, gradient, hessian;
    std::vector<const double*> a, inputs, input_tangents;
    std::vector<double*> h;
    std::vector<int64_t> at;
    std::optional<EigenWork> eigen;
  };
  struct Block {  // of samples
    int64_t first, samples, cols;
  };

  void lower();
  int add_slot(int64_t features);
  void lower_norm(const Op& op, int slot, int gain, int shift, std::vector<int64_t> index);
  int expand(int use, const std::vector<int64_t>& index);
  void check_untied() const;
  void plan();
  int64_t place(int use) const;
  int64_t parameter(const Step& step, int64_t row, int64_t column) const;
  int64_t columns(const Step& step) const;  // parameters that a row of the output has
  int64_t key(const Step& step, int64_t row) const;
  Worker& ready(Worker& worker, bool hessian) const;
  void group(int64_t count, const double* points, double denominator, double* losses,
             double* gradients, double* hessians, double* eigenvalues, Worker& worker) const;
  void write(int64_t count, int64_t size, double scale, const double* x, const bool* finite,
             double* out) const;
  void load_points(int64_t count, const double* points, Worker& worker) const;
  void load_block(int64_t number, const Block& block, Worker& worker) const;

  // point_passes.cpp: the four passes over the steps, as in program/ops/.
  void forward(const Block& b, Worker& w) const;
  void reverse(const Block& b, Worker& w) const;
  void tangent_forward(size_t from, int64_t row, const Block& b, Worker& w) const;
  void tangent_reverse(size_t from, int64_t row, const Block& b, Worker& w) const;
  void gradient_add(const Step& step, const Block& b, Worker& w) const;
  void hessian_add(size_t from, int64_t row, const Step& step, const Block& b, Worker& w) const;
  cpu::Targets targets(const Worker& w) const;
  template <typename F>
  void pull(const Step& step, const Block& b, const Worker& w, const double* dy, F adjoint) const;
  template <typename F, typename G>
  void bend(const Step& step, const Block& b, const Worker& w, F tangent, G adjoint) const;
  void find_inputs(const Step& step, int64_t row, const Block& b, const double* rows,
                   const double* last, std::vector<const double*>& to) const;

  const double* value(const Worker& w, const Block& b, int slot) const {
    return slot == 0 ? w.x.data() : w.rows.values.data() + row_[slot] * b.cols;
  }
  double* at(const Buffer<double>& rows, const Block& b, int slot) const {
    return moves_[slot] ? rows.data() + row_[slot] * b.cols : nullptr;
  }
  double* reached(const Buffer<double>& rows, const Block& b, const Step& from, int slot) const {
    return from.reach[slot] ? rows.data() + row_[slot] * b.cols : nullptr;
  }

  const Program<double>& program_;
  const cpu::Kernels<double>& kernels_;
  const cpu::PointKernels& points_;
  int64_t lanes_, n_, rows_ = 0, bent_rows_ = 0, tangents_ = 0, block_ = 1;
  bool able_ = false;
  double work_ = 0;  // multiplications of a point's gradient, roughly
  std::vector<Step> steps_;
  std::vector<int64_t> features_, row_;
  std::vector<bool> moves_;
  std::vector<int> maker_;  // step of each slot, -1 for the data
  int output_ = -1;
  std::vector<int32_t> rank_;  // by parameter: which of a pair's two places is filled
  std::mutex busy_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace pylandscape
