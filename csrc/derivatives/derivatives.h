// First and second derivatives of a Program's loss at one theta.
//
// The values at theta and their adjoints are computed once and kept for every tile, or, where they
// would take more than `memory` bytes, anew for every block of vectors. A Hessian-vector product is
// forward over reverse (Pearlmutter's R-operator): tangents forward, then tangents of the adjoints
// backward. The other matrices are a tangent pass, a new seed, and a reverse pass.
//
// derivatives.cpp is the schedule; passes.cpp walks the ops of a tile, whose own part is in
// program/ops/. Where a slot does not depend on theta (the data, frozen layers), its tangent is zero
// and never computed. Sums over samples are taken in double, in a fixed number of groups of tiles,
// added in order.
//
// Where samples depend on their batch there are the loss and its gradient alone, batch by batch
// (batch_passes.h).
#pragma once
#include <memory>
#include <mutex>

#include "derivatives/batch_passes.h"
#include "program/program.h"

namespace pylandscape {

// Of L = sum of the loss terms l_i over the samples: its Hessian; J^T (d^2 l / d outputs^2) J;
// sum_i (grad l_i)(grad l_i)^T.
enum class Matrix : int { kHessian, kGaussNewton, kCovariance };

template <typename T>
class Derivatives {
 public:
  // theta (n,). Throws Stopped.
  Derivatives(const Program<T>& program, const T* theta, int64_t memory, const Parallel& parallel,
              const ShouldStop& stop);
  ~Derivatives();  // leaves its memory to the program's next ones

  // Sum of the loss terms over the samples.
  double loss() const { return loss_; }
  // d loss / d theta (n,), of the same sum.
  const std::vector<double>& gradient() const { return gradient_; }
  // Whether the values at theta are kept between products.
  bool kept() const { return !kept_.empty(); }
  int64_t n() const { return program_.n(); }

  // out (k, n) = scale A v for the rows of vectors (k, n). False when stopped. Calls wait for each
  // other. This and the next throw std::invalid_argument where samples depend on their batch.
  bool products(Matrix matrix, int64_t k, const T* vectors, double scale, double* out,
                const Parallel& parallel, const ShouldStop& stop);
  // out (samples, n): gradients of the samples' own loss terms. False when stopped.
  bool sample_gradients(T* out, const Parallel& parallel, const ShouldStop& stop) const;

 private:
  struct Work {  // of one worker
    Primal<T> primal;
    std::vector<Tangents<T>> tangents;  // (block_)
    Buffer<T> columns, panels, dots;
  };

  // What all derivatives of a program need as much of, if they may keep as many bytes.
  struct Memory {
    int64_t bytes;
    Vector<T> theta;
    std::vector<Primal<T>> kept;
    std::vector<Work> works;
    std::vector<Vector<T>> vectors;
    std::vector<double> partial;
  };
  void take_memory();

  void take_batches(const Parallel& parallel, const ShouldStop& stop);
  void require_apart() const;
  Primal<T> new_primal() const;
  Work& ready(Work& work, bool primal) const;
  int64_t group_begin(int64_t group) const { return group * program_.tiles_ / groups_; }
  Pass<T> pass(int64_t tile, const Primal<T>& primal, size_t number) const;
  const T* output(const Primal<T>& primal) const;
  T* output_part(const Buffer<T>& rows) const;  // of adjoints or tangents; null: does not move
  void clear_padding(int64_t tile, T* seed) const;

  // Values, then adjoints; gradient (n,) += this tile's. Returns the tile's loss.
  double primal(int64_t tile, Primal<T>& to, double* gradient) const;
  void forward(int64_t tile, Primal<T>& to) const;
  // Adjoints of everything from the output's, already in place; parameters' += in gradient.
  void reverse(int64_t tile, const Primal<T>& primal, const Buffer<T>& adjoints, T* panels,
               double* gradient) const;
  void tangent_forward(int64_t tile, const Primal<T>& primal, const Vector<T>& v,
                       const Tangents<T>& to) const;
  void tangent_reverse(int64_t tile, const Primal<T>& primal, const Vector<T>& v,
                       const Tangents<T>& tangents, const Work& work, double* out) const;
  // The output's adjoint from its tangent: how the matrices differ.
  void seed(Matrix matrix, int64_t tile, const Primal<T>& primal, const Tangents<T>& tangents,
            const Work& work) const;
  void add_sample_gradients(int64_t tile, const Primal<T>& primal, T* out) const;

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  const std::shared_ptr<Shelf> shelf_;
  int64_t memory_;
  int64_t groups_;
  TileLayout layout_;
  int64_t block_ = 1;  // vectors that a tile takes together
  Vector<T> theta_;
  std::vector<Primal<T>> kept_;  // by tile
  double loss_ = 0;
  std::vector<double> gradient_;

  std::mutex busy_;  // scratch of products
  std::vector<Work> works_;
  std::vector<Vector<T>> vectors_;
  std::vector<double> partial_;
};

}  // namespace pylandscape
