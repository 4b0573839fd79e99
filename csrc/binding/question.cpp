// What is asked of a Program: Question and Derivatives, through pybind11. Tensors cross as addresses
// with sizes; threads come from torch's own pool.
#include <pybind11/pybind11.h>

#include <algorithm>

#include "binding/module.h"
#include "binding/stop.h"
#include "derivatives/derivatives.h"
#include "program/program.h"
#include "question/question.h"

namespace py = pybind11;
using namespace pylandscape;

namespace {

template <typename T>
void bind(py::module_& m, const char* question_name, const char* derivatives_name,
          const char* heir_name) {
  using P = Program<T>;
  using Q = Question<T>;
  using D = Derivatives<T>;

  py::class_<Q>(m, question_name)
      .def(py::init([](const P& p, Address theta, Address directions, int64_t k) {
             return construct<Q>(p, in<T>(theta), in<T>(directions), k);
           }),
           py::keep_alive<1, 2>())
      .def(py::init([](const P& p) { return construct<Q>(p); }), py::keep_alive<1, 2>())
      .def("run",
           [](const Q& q, int64_t g, Address coordinates, Address loss, Address correct,
              Address outputs) {
             finish([&](const Parallel& pool) {
               return q.run(g, in<T>(coordinates), out<double>(loss), out<double>(correct),
                            out<T>(outputs), nullptr, pool, interrupted);
             });
           })
      .def("run_samples",  // as `run`, with what SampleLosses lists
           [](const Q& q, int64_t g, Address coordinates, Address loss, Address correct,
              Address shares, int64_t references, Address reference, Address weights,
              Address squares, Address differences, Address own) {
             const SampleLosses asked{in<double>(shares),      references,
                                      in<double>(reference),   in<double>(weights),
                                      out<double>(squares),    out<double>(differences),
                                      out<double>(own)};
             finish([&](const Parallel& pool) {
               return q.run(g, in<T>(coordinates), out<double>(loss), out<double>(correct),
                            nullptr, &asked, pool, interrupted);
             });
           })
      .def("collect",
           [](const Q& q, int64_t g, Address coordinates, Address points) {
             finish([&](const Parallel& pool) {
               return q.collect(g, in<T>(coordinates), out<T>(points), pool, interrupted);
             });
           })
      .def_property_readonly("bytes", &Q::bytes)
      .def("describe", &Q::describe);

  py::class_<Heir<T>, std::shared_ptr<Heir<T>>>(m, heir_name);
  py::class_<D>(m, derivatives_name)
      .def(py::init([](const P& p, Address theta, int64_t memory, Heir<T>* from) {
             return construct<D>(p, in<T>(theta), memory, from);
           }),
           py::keep_alive<1, 2>(), py::arg("program"), py::arg("theta"), py::arg("memory"),
           py::arg("heir") = nullptr)
      .def("heir",
           [](D& d) {
             auto heir = std::make_shared<Heir<T>>();
             d.leave_to(heir);
             return heir;
           })
      .def_property_readonly("loss", &D::loss)
      .def_property_readonly("kept", &D::kept)
      .def("gradient",
           [](const D& d, Address to) {
             std::copy(d.gradient().begin(), d.gradient().end(), out<double>(to));
           })
      .def("products",
           [](D& d, Matrix matrix, int64_t k, Address vectors, Address products, double scale) {
             finish([&](const Parallel& pool) {
               return d.products(matrix, k, in<T>(vectors), scale, out<double>(products), pool,
                                 interrupted);
             });
           })
      .def("forms",  // (k,) scale v^T A v
           [](D& d, Matrix matrix, int64_t k, Address vectors, Address forms, double scale) {
             finish([&](const Parallel& pool) {
               return d.forms(matrix, k, in<T>(vectors), scale, out<double>(forms), pool,
                              interrupted);
             });
           })
      .def("sample_gradients", [](const D& d, Address to) {
        finish([&](const Parallel& pool) {
          return d.sample_gradients(out<T>(to), pool, interrupted);
        });
      });
}

}  // namespace

void pylandscape::bind_questions(py::module_& m) {
  bind<float>(m, "QuestionF32", "DerivativesF32", "DerivativeHeirF32");
  bind<double>(m, "QuestionF64", "DerivativesF64", "DerivativeHeirF64");
}
