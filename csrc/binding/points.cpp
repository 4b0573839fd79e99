// Points and eigenvalues, through pybind11; everything crosses as addresses.
#include "points/points.h"

#include <pybind11/pybind11.h>

#include "binding/module.h"
#include "binding/stop.h"
#include "points/eigenvalues.h"

namespace py = pybind11;
using namespace pylandscape;

void pylandscape::bind_points(py::module_& m) {
  py::class_<Points>(m, "Points")
      .def(py::init<const Program<double>&>(), py::keep_alive<1, 2>())
      .def_property_readonly("tangents", &Points::tangents)
      .def_property_readonly("able", &Points::able)
      .def("run", [](Points& p, int64_t count, Address points, double denominator, Address losses,
                     Address gradients, Address hessians, Address eigenvalues) {
        finish([&](const Parallel& pool) {
          return p.run(count, in<double>(points), denominator, out<double>(losses),
                       out<double>(gradients), out<double>(hessians), out<double>(eigenvalues),
                       pool, interrupted);
        });
      });
  m.def("eigenvalues", [](int64_t count, int64_t n, Address matrices, Address to) {
    finish([&](const Parallel& pool) {
      return eigenvalues(count, n, in<double>(matrices), out<double>(to), pool, interrupted);
    });
  });
}
