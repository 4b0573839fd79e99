// Points and eigenvalues, through pybind11; everything crosses as addresses.
#include "points/points.h"

#include <pybind11/pybind11.h>

#include "binding/module.h"
#include "binding/stop.h"
#include "points/eigenvalues.h"
#include "points/hessian_plan.h"

namespace py = pybind11;
using namespace pylandscape;

void pylandscape::bind_points(py::module_& m) {
  py::class_<Points> points(m, "Points");
  points.def(py::init<const Program<double>&>(), py::keep_alive<1, 2>())
      .def_property_readonly("tangents", &Points::tangents)
      .def_property_readonly("able", &Points::able)
      // (reason or "", bytes of the plan, list, constants, description); constants beyond theta's n.
      .def("hessian_plan", [](const Points& p, bool second, int64_t shared_limit) {
        const HessianPlan plan = plan_hessians(p, second, shared_limit);
        const hessian::Program& program = plan.program;
        py::dict about;
        about["threads"] = program.threads, about["points"] = program.points;
        about["columns"] = program.columns, about["tangents"] = program.tangents;
        about["batches"] = program.batches, about["steps"] = program.steps;
        about["shared"] = int64_t{hessian::Layout(program).total} * program.points *
                          int64_t{sizeof(double)};
        const auto bytes = [](const void* from, size_t size) {
          return py::bytes(static_cast<const char*>(from), size);
        };
        return py::make_tuple(plan.reason, bytes(&program, sizeof(program)),
                              bytes(plan.list.data(), plan.list.size() * sizeof(int32_t)),
                              bytes(plan.constants.data(), plan.constants.size() * sizeof(double)),
                              about);
      })
      .def("run", [](Points& p, int64_t count, Address points, double denominator, Address losses,
                     Address gradients, Address hessians, Address eigenvalues) {
        finish([&](const Parallel& pool) {
          return p.run(count, in<double>(points), denominator, out<double>(losses),
                       out<double>(gradients), out<double>(hessians), out<double>(eigenvalues),
                       pool, interrupted);
        });
      });
  points.def("walk", [](Points& p, py::tuple rule, py::tuple arrays, int64_t first, int64_t end,
                        bool known, double denominator) {
    const WalkRule how{rule[0].cast<double>(), rule[1].cast<double>(), rule[2].cast<int>(),
                       rule[3].cast<uint64_t>()};
    const WalkArrays walks{arrays[0].cast<int64_t>(),
                           arrays[1].cast<int64_t>(),
                           in<uint64_t>(arrays[2].cast<Address>()),
                           out<double>(arrays[3].cast<Address>()),
                           out<double>(arrays[4].cast<Address>()),
                           out<double>(arrays[5].cast<Address>()),
                           out<double>(arrays[6].cast<Address>())};
    bool lost = false;
    finish([&](const Parallel& pool) {
      return p.walk(how, walks, first, end, known, denominator, &lost, pool, interrupted);
    });
    return !lost;
  });
  m.def("eigenvalues", [](int64_t count, int64_t n, Address matrices, Address to) {
    finish([&](const Parallel& pool) {
      return eigenvalues(count, n, in<double>(matrices), out<double>(to), pool, interrupted);
    });
  });
}
