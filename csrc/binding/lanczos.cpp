// The Lanczos driver and the basis passes, through pybind11. On the host, bases, vectors and products
// cross as addresses; pylandscape/curvature/lanczos.py owns the memory. On a device, rows and passes are a
// Python object (pylandscape/curvature/device_passes.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "binding/module.h"
#include "binding/stop.h"
#include "derivatives/derivatives.h"
#include "lanczos/host_rows.h"
#include "lanczos/lanczos.h"
#include "lanczos/tridiagonal.h"

namespace py = pybind11;
using namespace pylandscape;

namespace {

// The driver over rows in the caller's memory.
template <typename B>
struct OnHost : Lanczos {
  OnHost(int64_t n, int64_t starts, int64_t capacity, B* basis, Reorthogonalize mode, bool fresh,
         uint64_t seed)
      : Lanczos(n, starts, capacity, precision_of<B>(), mode, fresh),
        rows(n, starts, capacity, basis, seed) {}

  HostRows<B> rows;
  int64_t multiplied = 0;  // vectors, by derivatives that `run` was given
};

struct OnDevice : Lanczos {
  using Lanczos::Lanczos;
};

// The driver over rows that a Python object has; see device_passes.DevicePasses for what it is asked.
class PythonRows final : public BasisRows {
 public:
  explicit PythonRows(const py::object& passes) : passes_(passes) {}

  bool multiply(const Jobs& jobs) override {
    passes_.attr("multiply")(where(jobs));
    return true;
  }
  void advance(const Jobs& jobs, bool removes) override {
    std::vector<std::vector<double>> local;
    for (const Job* job : jobs) local.push_back(job->local);
    const auto alphas_and_found =
        passes_.attr("advance")(where(jobs), local, removes).cast<std::pair<py::list, py::list>>();
    for (size_t i = 0; i < jobs.size(); ++i)
      jobs[i]->alpha = alphas_and_found.first[i].cast<double>();
    take(jobs, alphas_and_found.second);
  }
  void project(const Jobs& jobs) override { take(jobs, passes_.attr("project")(where(jobs))); }
  void orthogonalize(const Jobs& jobs) override {
    take(jobs, passes_.attr("orthogonalize")(where(jobs)));
  }
  void remove(const Jobs& jobs) override {
    std::vector<std::vector<double>> coefficients;
    for (const Job* job : jobs) coefficients.push_back(job->in);
    take(jobs, passes_.attr("remove")(where(jobs), coefficients));
  }
  void normalize(const Jobs& jobs) override {
    std::vector<double> norms;
    for (const Job* job : jobs) norms.push_back(job->norm);
    passes_.attr("normalize")(where(jobs), norms);
  }
  void draw(const Job& job, int attempt) override {
    passes_.attr("draw")(job.start, job.rows, attempt);
  }

 private:
  // (start, rows) of each job.
  static std::vector<std::pair<int64_t, int64_t>> where(const Jobs& jobs) {
    std::vector<std::pair<int64_t, int64_t>> found;
    for (const Job* job : jobs) found.push_back({job->start, job->rows});
    return found;
  }
  // (in, out, norm) of each job.
  static void take(const Jobs& jobs, const py::object& found) {
    using Numbers = std::tuple<std::vector<double>, std::vector<double>, double>;
    const py::list list = found;
    for (size_t i = 0; i < jobs.size(); ++i)
      std::tie(jobs[i]->in, jobs[i]->out, jobs[i]->norm) = list[i].cast<Numbers>();
  }

  const py::object& passes_;
};

// The state of a process, wherever its rows are.
void bind_state(py::module_& m) {
  py::class_<Lanczos>(m, "Lanczos")
      .def("load",
           [](Lanczos& l, int64_t start, std::vector<double> alpha, std::vector<double> beta,
              std::vector<double> spikes, Outcome outcome) {
             l.load(start, {std::move(alpha), std::move(beta), std::move(spikes), outcome});
           })
      .def("alpha", [](const Lanczos& l, int64_t i) { return l.start(i).alpha; })
      .def("beta", [](const Lanczos& l, int64_t i) { return l.start(i).beta; })
      .def("spikes", [](const Lanczos& l, int64_t i) { return l.start(i).spikes; })
      .def("outcome", [](const Lanczos& l, int64_t i) { return l.start(i).outcome; })
      .def("steps", [](const Lanczos& l, int64_t i) { return l.start(i).steps(); })
      .def_property_readonly("count", &Lanczos::count)
      .def_property_readonly("passes", &Lanczos::passes);
}

template <typename B>
void bind(py::module_& m, const char* name, const std::string& suffix) {
  using L = OnHost<B>;
  // basis (starts, capacity, n)
  py::class_<L, Lanczos>(m, name)
      .def(py::init([](int64_t n, int64_t starts, int64_t capacity, Address basis,
                       Reorthogonalize mode, bool fresh, uint64_t seed) {
        return std::make_unique<L>(n, starts, capacity, out<B>(basis), mode, fresh, seed);
      }))
      .def("begin",
           [](L& l) {
             l.rows.parallel = torch_pool();
             py::gil_scoped_release release;
             l.begin(l.rows);
           })
      // product(count, address of the vectors, address of the products), called with the GIL; what
      // it raises comes through, and the step is as if it had not begun.
      .def("run",
           [](L& l, int64_t steps, const py::function& product) {
             l.rows.parallel = torch_pool();
             l.rows.product = [&](int64_t count, const B* vectors, double* products) {
               py::gil_scoped_acquire gil;
               product(count, reinterpret_cast<Address>(vectors),
                       reinterpret_cast<Address>(products));
               return true;
             };
             py::gil_scoped_release release;
             l.run(steps, l.rows);
           })
      // The same with the products scale A v of a Program's derivatives, without a way through Python.
      // Ctrl-C ends a product, or comes between two: the step is as if it had not begun.
      .def("run",
           [](L& l, int64_t steps, Derivatives<B>& derivatives, Matrix matrix, double scale) {
             finish([&](const Parallel& pool) {
               l.rows.parallel = pool;
               Polls stop;
               l.rows.product = [&](int64_t count, const B* vectors, double* products) {
                 if (stop.asked()) return false;
                 const bool done = derivatives.products(matrix, count, vectors, scale, products,
                                                        pool, interrupted);
                 if (done) l.multiplied += count;
                 return done;
               };
               return l.run(steps, l.rows);
             });
           })
      .def_readonly("multiplied", &L::multiplied);

  // w (n,) <- w - Q^T (Q w) for orthonormal rows Q (rows, n); coefficients (rows,) = Q w. Gives
  // ||w|| and what is left of Q w, relative to it.
  m.def(("orthogonalize_" + suffix).c_str(),
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

  // out (count, n) = C Q for Q (rows, n) and C (count, rows) float64; out may be Q's first rows.
  m.def(("combine_" + suffix).c_str(), [](Address q, int64_t rows, int64_t n, Address coefficients,
                                          int64_t count, Address to) {
    const Parallel pool = torch_pool();
    py::gil_scoped_release release;
    BasisPasses<B>(n).combine(rows, in<B>(q), count, in<double>(coefficients), out<B>(to), pool);
  });
  // out (k, l) float64: x_i . y_j for rows x (k, n) and y (l, n).
  m.def(("inner_" + suffix).c_str(),
        [](Address x, int64_t k, Address y, int64_t l, int64_t n, Address to) {
          const Parallel pool = torch_pool();
          py::gil_scoped_release release;
          BasisPasses<B>(n).inner(k, in<B>(x), l, in<B>(y), out<double>(to), pool);
        });
  // out (k,) float64: x_i . y_i for rows x (k, n) and y (k, n) float64.
  m.def(("dots_" + suffix).c_str(), [](Address x, Address y, int64_t k, int64_t n, Address to) {
    const Parallel pool = torch_pool();
    py::gil_scoped_release release;
    std::vector<std::pair<const B*, const double*>> pairs;
    for (int64_t i = 0; i < k; ++i) pairs.push_back({in<B>(x) + i * n, in<double>(y) + i * n});
    const std::vector<double> found = BasisPasses<B>(n).dots(pairs, pool);
    std::copy(found.begin(), found.end(), out<double>(to));
  });
  // Rows (k, n) become orthonormal; r (k, k) float64.
  m.def(("orthonormal_" + suffix).c_str(), [](Address rows, int64_t k, int64_t n, Address r) {
    const Parallel pool = torch_pool();
    py::gil_scoped_release release;
    BasisPasses<B>(n).orthonormal(k, out<B>(rows), out<double>(r), pool);
  });
}

// passes: see PythonRows; it is given with each call, so that nothing here keeps it alive.
void bind_device(py::module_& m) {
  py::class_<OnDevice, Lanczos>(m, "LanczosDevice")
      .def(py::init([](int64_t n, int64_t starts, int64_t capacity, bool wide, Reorthogonalize mode,
                       bool fresh) {
        const Precision precision = wide ? precision_of<double>() : precision_of<float>();
        return std::make_unique<OnDevice>(n, starts, capacity, precision, mode, fresh);
      }))
      .def("begin",
           [](OnDevice& l, const py::object& passes) {
             PythonRows rows(passes);
             l.begin(rows);
           })
      .def("run", [](OnDevice& l, int64_t steps, const py::object& passes) {
        PythonRows rows(passes);
        l.run(steps, rows);
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
  bind_state(m);
  bind<float>(m, "LanczosF32", "f32");
  bind<double>(m, "LanczosF64", "f64");
  bind_device(m);
  m.def("tridiagonal_eigen", [](int64_t n, Address values, Address beside, int64_t rows,
                                Address turned) {
    const py::gil_scoped_release release;
    return tridiagonal_eigen(n, out<double>(values), out<double>(beside), rows,
                             out<double>(turned));
  });
}
