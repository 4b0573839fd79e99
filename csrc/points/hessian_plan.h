// Plans how the Hessians of a Points run on a GPU (common/hessian.h): the rows, the tables, how many
// tangents at once, what a block takes. From shapes alone; no CUDA.
#pragma once
#include <string>
#include <vector>

#include "common/hessian.h"
#include "points/points.h"

namespace pylandscape {

struct HessianPlan {
  std::string reason;  // why it does not run there; empty where it does
  hessian::Program program{};
  std::vector<int32_t> list;      // Program::list_size entries: indices and tables
  std::vector<double> constants;  // Program::source - n values
};

// second: Hessians, or losses and gradients alone. shared_limit: bytes of shared memory that a block
// may have.
HessianPlan plan_hessians(const Points& points, bool second, int64_t shared_limit);

}  // namespace pylandscape
