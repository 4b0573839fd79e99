// What an op sees of the plan for Hessians on a GPU (hessian_plan.h) when it writes its step.
#pragma once
#include <string>
#include <vector>

#include "common/hessian.h"
#include "points/step.h"

namespace pylandscape {

class HessianSteps {
 public:
  struct Refusal {
    std::string reason;
  };
  // Ends the plan: such networks do not run there.
  [[noreturn]] static void refuse(std::string reason) { throw Refusal{std::move(reason)}; }
  static int32_t narrow(int64_t x);  // refuses what is too large for the plan

  // The kernel's step of a step of Points, into rows of its own or from row `out` on; inputs, rows,
  // sizes and relu are filled in.
  hessian::Step& add(hessian::Kind kind, const PointStep& from);
  hessian::Step& add(hessian::Kind kind, const PointStep& from, int32_t out);
  // A step whose rows are copies: of row index[r], or of the constant `a` (hessian::kFill).
  void gather(const PointStep& from, const std::vector<int64_t>& index);

  int64_t features(int slot) const { return slots_.features[slot]; }
  const std::vector<int64_t>& features() const { return slots_.features; }
  int32_t row(int slot) const { return rows_of_[slot]; }
  void place(int slot, int32_t first) { rows_of_[slot] = first; }
  int64_t take_rows(int64_t count);
  int32_t add_list(const std::vector<int64_t>& entries);
  int32_t add_constants(const double* from, int64_t count);
  // Of `count` elements that stand at `place` in what Points calls the source.
  int32_t source(int64_t place, int64_t count);

 protected:
  // constants: of the source, beyond the n of theta.
  HessianSteps(const PointSlots& slots, int64_t n, const std::vector<double>& constants)
      : slots_(slots), n_(n), from_(constants), rows_of_(slots.features.size(), -1) {}

  const PointSlots& slots_;
  int64_t n_;
  const std::vector<double>& from_;
  std::vector<hessian::Step> steps_;
  std::vector<int32_t> list_;      // HessianPlan::list
  std::vector<double> constants_;  // HessianPlan::constants
  std::vector<int32_t> rows_of_;   // by slot
  int64_t rows_ = 0;
};

}  // namespace pylandscape
