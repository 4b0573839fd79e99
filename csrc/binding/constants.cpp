// Numbers and names of the core that Python needs, so that it does not have its own copy of them.
#include "binding/module.h"
#include "common/limits.h"
#include "common/resident.h"
#include "program/ops/entry.h"

namespace py = pybind11;

namespace pylandscape {

void bind_constants(py::module_& m) {
  py::tuple kinds(kOpKinds);
  for (int i = 0; i < kOpKinds; ++i) kinds[i] = kOpNames[i];
  m.attr("OP_KINDS") = kinds;
  m.attr("RESIDENT_FILL") = resident::kFill;  // in the list of a resident plan: a zero
  m.attr("WARP") = resident::kWarp;           // samples whose losses are added as one part
  m.attr("MOST_STARTS") = cuda::kMostStarts;
  m.attr("MOST_BASIS_ROWS") = cuda::kMostBasisRows;
  m.attr("MOST_ORDER") = cuda::kMostOrder;
  m.attr("SUM_RUN") = cuda::kSumRun;
}

}  // namespace pylandscape
