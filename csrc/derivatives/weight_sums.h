// Sums over samples of the adjoints of a weight.
#pragma once
#include <utility>
#include <vector>

#include "derivatives/passes.h"

namespace pylandscape {

// Groups of tiles whose sums over samples are taken apart and added in order: so many threads can
// share the tiles. Four at least; more where the products of a group are so many that its n doubles,
// which are cleared and added, do not count. From shapes alone, so that the bits do not depend on
// the threads.
constexpr int64_t kLeastGroups = 4, kMostGroups = 16;
int64_t sum_groups(const OpList& program, int64_t samples, int64_t tiles);

// The gradient of a weight (m, k): summed where it belongs, or, where the parameter holds the
// transpose, in rows of its own that are added transposed at the end.
class WeightSums {
 public:
  WeightSums(const Op& op, bool transposed, double* to)
      : m_(op.m), k_(op.k), to_(to), own_(transposed && to != nullptr ? op.m * op.k : 0) {}
  double* data() { return own_.empty() ? to_ : own_.data(); }
  void finish() {
    for (size_t i = 0; i < own_.size(); ++i) to_[i % k_ * m_ + i / k_] += own_[i];
  }

 private:
  int64_t m_, k_;
  double* to_;
  std::vector<double> own_;
};

// Those of the data (features, cols) of one tile; no two have the same op and the same g.
template <typename T>
void add_direct_sums(const OpList& program, const cpu::Kernels<T>& kernels, const T* data,
                     int64_t cols, const std::vector<DirectSum<T>>& sums) {
  for (size_t i = 0; i < program.ops().size(); ++i) {
    const Op& op = program.ops()[i];
    std::vector<WeightSums> own;
    std::vector<const T*> dy;
    std::vector<double*> g;
    for (const DirectSum<T>& sum : sums) {
      if (sum.op != i) continue;
      own.emplace_back(op, program.uses()[op.weight].transposed(), sum.g);
      dy.push_back(sum.dy);
    }
    if (own.empty()) continue;
    for (WeightSums& sum : own) g.push_back(sum.data());
    kernels.outer_add_rows(op.m, op.k, cols, static_cast<int64_t>(dy.size()), dy.data(),
                           data + op.first(0) * cols, g.data());
    for (WeightSums& sum : own) sum.finish();
  }
}

// Wide weights whose sums are taken after the passes, over several tiles at once. As doubles they are
// more than the caches hold, so each time that sums join them costs as much as the products of some
// 100 samples; and they are divided by their elements, so that no group of tiles has its own.
struct LateSums {
  // Of tiles of `tile` columns.
  template <typename T>
  static LateSums of(const OpList& program, const TileLayout& layout, const cpu::Kernels<T>& kernels,
                     int64_t tile, int64_t groups);

  std::vector<bool> ops;  // by number
  // Work items: features first .. first + width - 1 of op's inputs.
  struct Strip {
    size_t op;
    int64_t first, width;
  };
  std::vector<Strip> strips;
  bool any() const { return !strips.empty(); }
  int64_t run = 1;  // tiles of a group that join the doubles together
  // Where an op's adjoints and inputs (Primal) are in what is kept of a tile, of `size` elements.
  struct Place {
    size_t op;
    int64_t panels, panels_size, columns, columns_size;
  };
  std::vector<Place> places;
  int64_t size = 0;
  // The parameters whose sums are not late, as ranges of theta.
  std::vector<std::pair<int64_t, int64_t>> others;
};

}  // namespace pylandscape
