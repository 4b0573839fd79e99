// What an op sees of the plan for a GPU's block (resident_plan.h) when it writes its step.
#pragma once
#include <functional>
#include <vector>

#include "common/resident.h"
#include "program/op_list.h"

namespace pylandscape {

struct ResidentStep {
  const Op& op;
  const OpList& program;
  std::function<int32_t(int slot, int64_t i)> row;  // where row i of a slot lies
  std::function<int32_t(int use)> weight;           // where a use lies, or -1
  std::vector<int32_t>& list;                       // of indices
  resident::Step step{};  // out, x, shapes, relu, log, a and b are filled in already

  // The step copies rows: list the row that each row of the output is.
  void gather() {
    step.kind = resident::Kind::kGather;
    step.index = static_cast<int32_t>(list.size());
  }
};

}  // namespace pylandscape
