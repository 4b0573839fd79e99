// First and second derivatives of a Program's loss at one theta.
//
// The primal values and their adjoints are computed once and kept for every tile. A Hessian-vector
// product is forward over reverse (Pearlmutter's R-operator): tangents forward, then tangents of
// the adjoints backward. Supported ops: linear, unary (all with a derivative kernel), add, sub,
// mul, concat; losses: mse, cross-entropy of class indices. The next op adds its case to the four
// functions forward, backward, tangent_forward and tangent_backward.
//
// Sums over samples are taken in double, in a fixed number of groups of tiles, added in order.
#pragma once
#include "program/program.h"

namespace pylandscape {

template <typename T>
class Derivatives {
 public:
  // theta (n,). Throws std::domain_error when an op or the loss has no derivative.
  Derivatives(const Program<T>& program, const T* theta, const Parallel& parallel);

  // Sum of the loss terms over the samples.
  double loss() const { return loss_; }
  // d loss / d theta (n,), of the same sum.
  const std::vector<double>& gradient() const { return gradient_; }
  // out (k, n) = H v for the rows of vectors (k, n). False when stopped.
  bool hvp(int64_t k, const T* vectors, double* out, const Parallel& parallel,
           const ShouldStop& stop) const;

 private:
  struct Weights {  // one vector's parameters as the kernels want them
    Buffer<T> packed, transposed;
  };
  struct Tangent {  // of one tile
    Buffer<T> values, adjoints;
  };

  void check() const;
  void fill(const T* vector, bool constants, Weights& weights) const;
  const T* value(int64_t tile, int slot) const;
  T* adjoint(int64_t tile, int slot) const;
  void forward(int64_t tile);
  void backward(int64_t tile, double* gradient);
  void tangent_forward(int64_t tile, const Weights& v, Tangent& tangent) const;
  void tangent_backward(int64_t tile, const Weights& v, Tangent& tangent, double* out) const;
  void add_parameter_products(const Op& op, int64_t cols, const T* dy, const T* x,
                              double* gradient) const;
  int64_t group_begin(int64_t group) const { return group * program_.tiles_ / groups_; }

  const Program<T>& program_;
  int64_t groups_;
  std::vector<int64_t> row_;  // first row of each slot
  int64_t rows_ = 0;
  Weights theta_;
  Buffer<T> values_, adjoints_;  // (tiles, rows, tile)
  Buffer<T> first_, second_;     // f' and f'' at the rows of unary ops' outputs
  double loss_ = 0;
  std::vector<double> gradient_;
};

}  // namespace pylandscape
