// The Program: a network and its loss as a short list of ops, over data that it holds.
//
// Values are slots: (features, cols) matrices, one per tile of samples (cpu/kernels.h). Parameters
// are read from a flat source vector through uses: a use is one parameter seen by one kind of op,
// stored where the kernels want it ("packed"). A Question (question/) fixes theta and directions,
// computes once what is the same at all points, and then answers any number of points; Derivatives
// (derivatives/) fix theta. Neither changes the Program, so several may run at once.
//
// Results do not depend on the number of threads, on how points are chunked, or on the order in
// which work items run: a tile's arithmetic is fixed by shapes, its loss is summed column by column
// in double, and tiles are added in order.
#pragma once
#include "program/buffer.h"
#include "program/op_list.h"
#include "program/parallel.h"

namespace pylandscape {

template <typename T>
class Program : public OpList {
 public:
  // n: length of theta. constants: values of parameters and buffers that no point moves.
  Program(int64_t n, std::vector<T> constants);

  // More constants; the source of the first.
  int64_t constants(int64_t count, const double* values);

  // How many samples each batch has, before the data; without it they are one batch.
  void set_batches(std::vector<int64_t> sizes);
  // x (samples, features) row-major; after finish().
  void set_data(int64_t samples, const T* x);
  // index (samples, outer, inner) with -1 where a target does not count, or dense (samples,
  // features); the outputs' features are (outer, classes, inner). weight and pos_weight may be empty.
  void set_loss(cpu::Loss kind, int64_t classes, int64_t inner, double label_smoothing,
                std::vector<double> weight, std::vector<double> pos_weight, const int64_t* index,
                const double* dense, int64_t outer = 1, double a = 0, double b = 0);

  int64_t samples() const { return samples_; }
  int64_t tile() const { return tile_; }
  int64_t tiles() const { return tiles_; }
  bool lanes() const { return lanes_; }  // point lanes (few samples, few parameters)
  const std::vector<int64_t>& batches() const { return batches_; }  // samples of each
  const std::vector<T>& constants() const { return constants_; }
  const cpu::Kernels<T>& kernels() const { return kernels_; }
  int64_t packed_size() const { return packed_size_; }  // elements of all uses
  // Uses from a source vector (theta or a direction; null constants mean zero) into dst.
  void pack(const Use& use, const T* theta, const T* constants, T* dst) const;

 private:
  template <typename>
  friend class Question;
  template <typename>
  friend class Derivatives;
  template <typename>
  friend class Batches;
  template <typename>
  friend class Training;
  template <typename>
  friend class CurveGradient;
  template <typename>
  friend class BatchPasses;
  friend class LaneTraining;
  template <typename>
  friend class ResidentPlanner;
  friend class Points;
  friend class HessianPlanner;

  void plan_tiles();
  int64_t tile_columns(int64_t tile) const;  // columns that carry samples
  int64_t padded_columns(int64_t tile) const;
  int64_t most_batch_tiles() const;
  const T* tile_data(int64_t tile) const { return x_.data() + tile * slots_[0] * tile_; }
  cpu::Targets targets(int64_t tile) const;

  const cpu::Kernels<T>& kernels_;
  int64_t samples_ = 0, tile_ = 0, tiles_ = 0;
  std::vector<T> constants_;
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

}  // namespace pylandscape
