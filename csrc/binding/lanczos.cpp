// The Lanczos driver and the basis passes, through pybind11. Bases, vectors and products cross as
// addresses; pylandscape/lanczos.py owns the memory.
#include "lanczos/lanczos.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "binding/module.h"
#include "binding/pool.h"

namespace py = pybind11;
using namespace pylandscape;

namespace {

template <typename B>
void bind(py::module_& m, const char* name, const char* orthogonalize) {
  using L = Lanczos<B>;
  py::class_<L>(m, name)
      .def(py::init([](int64_t n, int64_t starts, int64_t capacity, Address basis,
                       Reorthogonalize mode, bool fresh, uint64_t seed) {
        return std::make_unique<L>(n, starts, capacity, out<B>(basis), mode, fresh, seed);
      }))
      .def("begin",
           [](L& l) {
             const Parallel pool = torch_pool();
             py::gil_scoped_release release;
             l.begin(pool);
           })
      .def("load",
           [](L& l, int64_t start, std::vector<double> alpha, std::vector<double> beta,
              std::vector<double> spikes, Outcome outcome) {
             l.load(start, {std::move(alpha), std::move(beta), std::move(spikes), outcome});
           })
      // product(count, address of the vectors, address of the products), called with the GIL; what
      // it raises comes through, and the step is as if it had not begun.
      .def("run",
           [](L& l, int64_t steps, const py::function& product) {
             const Parallel pool = torch_pool();
             py::gil_scoped_release release;
             l.run(steps,
                   [&](int64_t count, const B* vectors, double* products) {
                     py::gil_scoped_acquire gil;
                     product(count, reinterpret_cast<Address>(vectors),
                             reinterpret_cast<Address>(products));
                     return true;
                   },
                   pool);
           })
      .def("alpha", [](const L& l, int64_t i) { return l.start(i).alpha; })
      .def("beta", [](const L& l, int64_t i) { return l.start(i).beta; })
      .def("spikes", [](const L& l, int64_t i) { return l.start(i).spikes; })
      .def("outcome", [](const L& l, int64_t i) { return l.start(i).outcome; })
      .def("steps", [](const L& l, int64_t i) { return l.start(i).steps(); })
      .def_property_readonly("count", &L::count)
      .def_property_readonly("passes", &L::passes);

  // w (n,) <- w - Q^T (Q w) for orthonormal rows Q (rows, n); coefficients (rows,) = Q w. Gives
  // ||w|| and what is left of Q w, relative to it.
  m.def(orthogonalize,
        [](Address basis, int64_t rows, int64_t n, Address w, Address coefficients) {
          const Parallel pool = torch_pool();
          py::gil_scoped_release release;
          BasisPasses<B> passes(n);
          typename BasisPasses<B>::Job job;
          job.basis = in<B>(basis), job.rows = rows, job.w = out<B>(w);
          std::vector<typename BasisPasses<B>::Job*> jobs{&job};
          passes.orthogonalize(jobs, pool);
          std::copy(job.in.begin(), job.in.end(), out<double>(coefficients));
          double left = 0;
          for (const double s : job.out) left = std::max(left, std::abs(s));
          return std::make_pair(job.norm, job.norm > 0 ? left / job.norm : 0.0);
        });
}

}  // namespace

void pylandscape::bind_lanczos(py::module_& m) {
  py::enum_<Reorthogonalize>(m, "Reorthogonalize")
      .value("full", Reorthogonalize::kFull)
      .value("partial", Reorthogonalize::kPartial)
      .value("none", Reorthogonalize::kNone);
  py::enum_<Outcome>(m, "Outcome")
      .value("running", Outcome::kRunning)
      .value("breakdown", Outcome::kBreakdown)
      .value("exhausted", Outcome::kExhausted)
      .value("not_finite", Outcome::kNotFinite);
  bind<float>(m, "LanczosF32", "orthogonalize_f32");
  bind<double>(m, "LanczosF64", "orthogonalize_f64");
}
