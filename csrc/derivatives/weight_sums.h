// Sums over samples of the adjoints of a weight.
#pragma once
#include <vector>

#include "derivatives/passes.h"

namespace pylandscape {

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

}  // namespace pylandscape
