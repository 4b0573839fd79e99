// Runs of an optimiser, through pybind11; everything crosses as addresses.
#include "training/training.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "binding/module.h"
#include "binding/stop.h"
#include "training/curve.h"
#include "training/lanes.h"

namespace py = pybind11;
using namespace pylandscape;

namespace {

Rule rule_of(const std::string& kind, const std::map<std::string, double>& values) {
  const std::map<std::string, cpu::OptimiserKind> kinds = {
      {"sgd", cpu::OptimiserKind::kSgd},           {"adagrad", cpu::OptimiserKind::kAdagrad},
      {"rmsprop", cpu::OptimiserKind::kRmsprop},   {"adadelta", cpu::OptimiserKind::kAdadelta},
      {"adam", cpu::OptimiserKind::kAdam},
  };
  const auto value = [&](const char* name, double otherwise = 0) {
    const auto found = values.find(name);
    return found == values.end() ? otherwise : found->second;
  };
  Rule rule;
  cpu::Optimiser& o = rule.optimiser;
  o.kind = kinds.at(kind);
  o.nesterov = value("nesterov") != 0, o.decoupled = value("decoupled") != 0;
  o.momentum = value("momentum"), o.dampening = value("dampening");
  o.weight_decay = value("weight_decay"), o.decay = value("decay"), o.eps = value("eps");
  o.inside = value("inside"), rule.from_zero = value("from_zero") != 0;
  rule.beta1 = value("beta1"), rule.beta2 = value("beta2"), rule.rate_decay = value("rate_decay");
  rule.clip = value("clip", -1);
  rule.two_stages = values.count("q1") > 0;
  rule.a1 = value("a1", 1), rule.a2 = value("a2"), rule.q1 = value("q1");
  return rule;
}

template <typename T, typename Trainer>
void bind(py::module_& m, const char* name) {
  py::class_<Trainer>(m, name)
      .def(py::init([](const Program<T>& program, const std::string& kind,
                       const std::map<std::string, double>& values, Address counts,
                       int64_t statistics) {
             const Rule rule = rule_of(kind, values);
             if constexpr (std::is_same_v<Trainer, LaneTraining>)
               return std::make_unique<Trainer>(program, rule, in<double>(counts));
             else
               return std::make_unique<Trainer>(program, rule, in<double>(counts), statistics);
           }),
           py::arg(), py::arg(), py::arg(), py::arg(), py::arg("statistics") = 0,
           py::keep_alive<1, 2>())
      .def_property_readonly("slots", &Trainer::slots)
      // batches: (size, address, whether every run has its own) of each step.
      .def("advance", [](Trainer& t, int64_t count, Address theta,
                         const std::vector<Address>& slots, int64_t done,
                         const std::vector<std::tuple<int64_t, Address, bool>>& batches,
                         Address rates, Address losses, Address statistics, Address seeds) {
        Runs<T> runs{count, out<T>(theta), {}, done, out<T>(statistics), in<int64_t>(seeds)};
        for (const Address a : slots) runs.slots.push_back(out<T>(a));
        std::vector<Indices> steps;
        steps.reserve(batches.size());
        for (const auto& [size, samples, own] : batches)
          steps.push_back({size, in<int64_t>(samples), own});
        finish([&](const Parallel& pool) {
          return t.advance(runs, steps, in<double>(rates), out<double>(losses), pool, interrupted);
        });
      },
      py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
      py::arg("statistics") = 0, py::arg("seeds") = 0);
}

template <typename T>
void bind_curve(py::module_& m, const char* name) {
  py::class_<CurveGradient<T>>(m, name)
      .def(py::init([](const Program<T>& program, Address counts, Address ends) {
             return std::make_unique<CurveGradient<T>>(program, in<double>(counts),
                                                       in<double>(ends));
           }),
           py::keep_alive<1, 2>())
      .def("run", [](CurveGradient<T>& c, int64_t points, int64_t bends, Address weights,
                     Address free, Address losses, Address slopes) {
        finish([&](const Parallel& pool) {
          return c.run(points, bends, in<double>(weights), in<double>(free), out<double>(losses),
                       out<double>(slopes), pool, interrupted);
        });
      });
}

}  // namespace

void pylandscape::bind_training(py::module_& m) {
  bind<float, Training<float>>(m, "TrainingF32");
  bind<double, Training<double>>(m, "TrainingF64");
  bind<double, LaneTraining>(m, "LaneTraining");
  bind_curve<float>(m, "CurveGradientF32");
  bind_curve<double>(m, "CurveGradientF64");
}
