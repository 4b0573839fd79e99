// What an op sees of the plan for a GPU's block (resident_plan.h) when it writes its step.
#pragma once
#include <vector>

#include "common/resident.h"
#include "program/op_list.h"

namespace pylandscape {

// Where the plan has put things.
class ResidentPlaces {
 public:
  virtual int32_t row(int slot, int64_t i) const = 0;  // row i of a slot
  virtual int32_t weight(int use) const = 0;           // a use; -1 where it is none

 protected:
  ~ResidentPlaces() = default;
};

struct ResidentStep {
  const Op& op;
  const OpList& program;
  const ResidentPlaces& places;
  std::vector<int32_t>& list;  // of indices
  resident::Step step{};  // out, x, shapes, relu, log, a and b are filled in already

  int32_t row(int slot, int64_t i) const { return places.row(slot, i); }
  int32_t weight(int use) const { return places.weight(use); }
  // The step copies rows: list the row that each row of the output is.
  void gather() {
    step.kind = resident::Kind::kGather;
    step.index = static_cast<int32_t>(list.size());
  }
};

}  // namespace pylandscape
