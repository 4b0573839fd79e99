// Losses at points of a curve, and their gradients in the curve's free vertices.
//
// A point is sum_k w_k V_k of a few vertices V with sum_k w_k = 1. A linear op that reads the data
// multiplies by every vertex, not by every point: W x of a point is the same mixture of the
// vertices' products, and the gradient in a vertex is one product of x with the mixed adjoints.
// Products of the two ends, which stay, are kept from call to call while they fit. All other ops run
// at every point by the passes of derivatives/.
#pragma once
#include <mutex>

#include "derivatives/passes.h"
#include "training/batches.h"

namespace pylandscape {

template <typename T>
class CurveGradient {
 public:
  // Over all samples of a Program whose samples do not depend on each other and draw nothing.
  // counts: see Batches. ends (2, n): the first and the last vertex.
  CurveGradient(const Program<T>& program, const double* counts, const double* ends);

  // free (bends, n): the vertices between the ends; weights (points, bends + 2), in their order.
  // losses (points,); slopes (bends, n) = sum over the points of w_k grad L. False when stopped.
  bool run(int64_t points, int64_t bends, const double* weights, const double* free,
           double* losses, double* slopes, const Parallel& parallel, const ShouldStop& stop);

 private:
  struct Shared {  // a linear op that reads the data
    size_t op;
    int64_t row;  // of its products, among those of all
  };
  struct Range {  // of parameters that other passes differentiate
    int64_t first, last;
  };
  struct Work {  // of one worker
    Primal<T> primal;
    Buffer<T> late, products, mixed;  // columns; (vertices, rows, tile); (bends, rows, tile)
    std::vector<double> terms, own;   // own (n,): the gradient at one point
    std::vector<const T*> slots, z;
  };
  struct Mixture {
    int64_t points, bends;
    const double* weights;
    double weight(int64_t point, int64_t vertex) const {
      return weights[point * (bends + 2) + vertex];
    }
  };

  void prepare(Work& work, int64_t bends) const;
  void multiply(const Vector<T>& vertex, int64_t tile, T* products) const;
  T* kept(int64_t tile, int64_t end) {
    return kept_.data() + (2 * tile + end) * shared_rows_ * data_.tile;
  }
  // losses (points,) and sums (bends, n) += those of a tile.
  void tile(const Mixture& q, int64_t number, Work& work, double* losses, double* sums);
  void forward(const Mixture& q, int64_t point, int64_t number, const T* const* products,
               Work& work) const;
  void reverse(const Mixture& q, int64_t point, int64_t number, Work& work) const;
  Pass<T> pass(int64_t number, const Vector<T>& theta, const Work& work, size_t i) const;

  const Program<T>& program_;
  const cpu::Kernels<T>& kernels_;
  int64_t n_, widest_;
  TileLayout layout_;
  Batches<T> batches_;
  Gathered<T> data_;  // all of it
  std::vector<Shared> shared_;
  std::vector<int> place_;  // by op: which of the shared ones; or -1
  int64_t shared_rows_ = 0;
  std::vector<Range> ranges_;
  std::vector<double> ends_;
  Vector<T> fixed_[2];  // the first vertex; the last minus the first
  Buffer<T> kept_;      // (tiles, 2, rows, tile): their products, where they fit
  bool known_ = false;  // whether they are there

  std::mutex busy_;
  std::vector<Work> works_;
  std::vector<Vector<T>> thetas_, free_;  // points; vertices minus the first
};

}  // namespace pylandscape
