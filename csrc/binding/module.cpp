#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace py = pybind11;
using namespace pylandscape;

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", [] { return cpu::isa_name(cpu::isa()); });
}
