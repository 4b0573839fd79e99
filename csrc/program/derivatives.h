// First and second derivatives of a Program's loss at one theta.
//
// The values at theta and their adjoints are computed once and kept for every tile, or, where they
// would take more than `memory` bytes, anew for every block of vectors. A Hessian-vector product is
// forward over reverse (Pearlmutter's R-operator): tangents forward, then tangents of the adjoints
// backward. The other matrices are a tangent pass, a new seed, and a reverse pass.
//
// The four passes are in derivative_passes.cpp; the next op adds its case to each of them. Where a
// slot does not depend on theta (the data, frozen layers), its tangent is zero and never computed.
// Sums over samples are taken in double, in a fixed number of groups of tiles, added in order.
#pragma once
#include <mutex>

#include "program/program.h"

namespace pylandscape {

// Of L = sum of the loss terms l_i over the samples: its Hessian; J^T (d^2 l / d outputs^2) J;
// sum_i (grad l_i)(grad l_i)^T.
enum class Matrix : int { kHessian, kGaussNewton, kCovariance };

// Batch norm as y = x * scale + shift; xhat = x * inverse + centre.
template <typename T>
struct Channels {
  explicit Channels(int64_t count) : scale(count), shift(count), inverse(count), centre(count) {}
  std::vector<T> scale, shift, inverse, centre;
};

template <typename T>
class Derivatives {
 public:
  // theta (n,).
  Derivatives(const Program<T>& program, const T* theta, int64_t memory, const Parallel& parallel);

  // Sum of the loss terms over the samples.
  double loss() const { return loss_; }
  // d loss / d theta (n,), of the same sum.
  const std::vector<double>& gradient() const { return gradient_; }
  // Whether the values at theta are kept between products.
  bool kept() const { return !kept_.empty(); }
  int64_t n() const { return program_.n_; }

  // out (k, n) = scale A v for the rows of vectors (k, n). False when stopped. Calls wait for each
  // other.
  bool products(Matrix matrix, int64_t k, const T* vectors, double scale, double* out,
                const Parallel& parallel, const ShouldStop& stop);
  // out (samples, n): gradients of the samples' own loss terms. False when stopped.
  bool sample_gradients(T* out, const Parallel& parallel, const ShouldStop& stop) const;

 private:
  struct Primal {  // one tile at theta; (rows, tile) each
    Buffer<T> values, adjoints;
    Buffer<T> first, curved;  // at the outputs of unary ops: f'(x), f''(x) dy
    Buffer<T> columns;        // inputs of linear ops, as blocks of columns
    Buffer<T> panels;         // adjoints of linear ops, as panels
  };
  struct Vector {  // parameters as the kernels want them; of a tangent, zero where they are fixed
    Buffer<T> packed, transposed;
  };
  struct Tangents {  // of one vector, (rows, tile) each
    Buffer<T> values, adjoints;
  };
  struct Work {  // of one worker
    Primal primal;
    std::vector<Tangents> tangents;  // (block_)
    Buffer<T> columns, panels, dots;
  };

  void plan();
  Primal new_primal() const;
  Work& ready(Work& work, bool primal) const;
  void fill(const T* vector, const T* constants, Vector& to) const;
  int64_t group_begin(int64_t group) const { return group * program_.tiles_ / groups_; }
  int64_t columns_at(const Op& op) const;
  bool in_theta(int use) const { return use >= 0 && program_.uses_[use].source >= 0; }
  // Where the gradient of a use goes, or null.
  double* target(int use, double* gradient) const {
    return in_theta(use) ? gradient + program_.uses_[use].source : nullptr;
  }
  const T* packed(const Vector& v, int use) const {
    return use < 0 ? nullptr : v.packed.data() + program_.uses_[use].packed;
  }
  const T* transposed(const Vector& v, const Op& op) const {
    return v.transposed.data() + program_.uses_[op.weight].packed;
  }
  Channels<T> channels(const Op& op) const;
  Channels<T> channels_along(const Op& op, const Vector& v) const;
  void norm_sums_add(const Op& op, const Channels<T>& a, int64_t cols, const T* x, const T* dy,
                     double* gradient) const;
  cpu::Targets targets(int64_t tile) const;
  // A cell's inputs at theta, their adjoints, and their tangents; null where they do not move.
  cpu::CellInputs<const T> cell_values(int64_t tile, const Primal& primal, const Op& op) const;
  cpu::CellInputs<T> cell_inputs(const Buffer<T>& rows, const Op& op, int64_t cols) const;
  cpu::CellInputs<const T> cell_tangents(const Buffer<T>& rows, const Op& op, int64_t cols) const;
  void add_to_table(int64_t tile, const Op& op, const T* dy, double* dw) const;
  const T* value(int64_t tile, const Primal& primal, int slot) const;
  T* at(const Buffer<T>& rows, int slot) const {  // of a slot that depends on theta, else null
    return moves_[slot] ? rows.data() + row_[slot] * program_.tile_ : nullptr;
  }

  T* bent(const Buffer<T>& rows, int slot) const {  // the output of a unary op that does
    return moves_[slot] ? rows.data() + bent_row_[slot] * program_.tile_ : nullptr;
  }

  // Values, then adjoints; gradient (n,) += this tile's. Returns the tile's loss.
  double primal(int64_t tile, Primal& to, double* gradient) const;
  void forward(int64_t tile, Primal& to) const;
  // Adjoints of everything from the output's, already in place; parameters' += in gradient.
  void reverse(int64_t tile, const Primal& primal, const Buffer<T>& adjoints, T* panels,
               double* gradient) const;
  void tangent_forward(int64_t tile, const Primal& primal, const Vector& v,
                       const Tangents& to) const;
  void tangent_reverse(int64_t tile, const Primal& primal, const Vector& v,
                       const Tangents& tangents, const Work& work, double* out) const;
  // The output's adjoint from its tangent: how the matrices differ.
  void seed(Matrix matrix, int64_t tile, const Primal& primal, const Tangents& tangents,
            const Work& work) const;
  void clear_padding(int64_t tile, T* seed) const;
  void add_sample_gradients(int64_t tile, const Primal& primal, T* out) const;

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  int64_t groups_;
  std::vector<int64_t> row_;       // first row of each slot but the data
  std::vector<int64_t> bent_row_;  // of the outputs of unary ops, in `first` and `curved`
  std::vector<bool> moves_;     // whether a slot depends on theta
  std::vector<bool> transposed_;  // uses whose transpose a reverse pass multiplies by
  int64_t rows_ = 0, bent_rows_ = 0, columns_size_ = 0, panels_size_ = 0;
  int64_t most_columns_ = 0;  // of one op
  int64_t block_ = 1;  // vectors that a tile takes together
  std::vector<int64_t> columns_at_, panels_at_;  // by op; -1 where there is no linear weight in theta
  Vector theta_;
  std::vector<Primal> kept_;  // by tile
  double loss_ = 0;
  std::vector<double> gradient_;

  std::mutex busy_;  // scratch of products
  std::vector<Work> works_;
  std::vector<Vector> vectors_;
  std::vector<double> partial_;
};

}  // namespace pylandscape
