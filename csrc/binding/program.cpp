// Program, through pybind11. Tensors cross as addresses with sizes (the Python side,
// engines/native.py, checks dtype, layout and device and keeps them alive during the call).
#include "program/program.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "binding/module.h"
#include "binding/program_lists.h"

namespace py = pybind11;
using namespace pylandscape;

namespace {

using Pair = std::pair<int64_t, int64_t>;

// What is the same in both dtypes: the ops, which are added here.
void bind_ops(py::module_& m) {
  using P = OpList;
  using Source = std::optional<int64_t>;
  const auto address = [](const Source& s) { return s ? &*s : nullptr; };

  py::class_<P>(m, "OpList")
      .def("input", &P::input)
      .def("linear",
           [=](P& p, int x, int64_t outer, int64_t k, int64_t m, int64_t weight, Source bias,
               int64_t first) {
             return p.linear(x, outer, k, m, weight, address(bias), first);
           },
           py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg("first") = -1)
      .def("linear_transposed",  // weight (k, m)
           [=](P& p, int x, int64_t outer, int64_t k, int64_t m, int64_t weight, Source bias) {
             return p.linear(x, outer, k, m, weight, address(bias), -1, true);
           })
      .def("matmul",  // sizes (m, n, k); strides (xi, xk, yk, yj, zi, zj); first rows of each outer
           [](P& p, int x, int y, std::array<int64_t, 3> sizes, std::array<int64_t, 6> strides,
              const std::vector<int64_t>& x_outer, const std::vector<int64_t>& y_outer,
              const std::vector<int64_t>& z_outer, double scale) {
             if (x_outer.size() != z_outer.size() || y_outer.size() != z_outer.size())
               throw std::invalid_argument("Program: matmul: outer sizes differ");
             const auto [m, n, k] = sizes;
             const auto [xi, xk, yk, yj, zi, zj] = strides;
             const auto outer = static_cast<int64_t>(z_outer.size());
             return p.matmul(x, y,
                             {outer, m, n, k, xi, xk, yk, yj, zi, zj, x_outer.data(),
                              y_outer.data(), z_outer.data()},
                             scale);
           })
      .def("unary", &P::unary)
      .def("binary", &P::binary)
      .def("layer_norm",
           [=](P& p, int x, int64_t outer, int64_t size, double eps, Source gain, Source shift) {
             return p.layer_norm(x, outer, size, eps, address(gain), address(shift));
           })
      .def("group_norm",
           [=](P& p, int x, int64_t groups, int64_t pixels, int64_t channels, double eps,
               Source gain, Source shift) {
             return p.group_norm(x, groups, pixels, channels, eps, address(gain), address(shift));
           })
      .def("softmax", &P::softmax, py::arg("x"), py::arg("log"), py::arg("outer"), py::arg("size"),
           py::arg("inner"), py::arg("first") = std::vector<int64_t>{})
      .def("concat", &P::concat)
      .def("join",  // (first row, how many) of each input
           [](P& p, const std::vector<int>& inputs, const std::vector<Pair>& rows) {
             std::vector<Rows> parts;
             for (const auto& [first, count] : rows) parts.push_back({first, count});
             return p.join(inputs, std::move(parts));
           })
      .def("embedding", &P::embedding)
      .def("cell", &P::cell)
      .def("expand", &P::expand)
      .def("gather",
           [](P& p, int x, int64_t count, Address index, double fill) {
             const int64_t* from = in<int64_t>(index);
             return p.gather(x, std::vector<int64_t>(from, from + count), fill);
           })
      .def("conv",  // image, kernel, stride, pad, dilation: (h, w)
           [=](P& p, int x, int64_t groups, int64_t channels, int64_t rows, Pair image, Pair kernel,
               Pair stride, Pair pad, Pair dilation, int64_t weight, Source bias) {
             cpu::ConvArgs a{};
             a.groups = groups, a.channels = channels, a.rows = rows;
             a.in_h = image.first, a.in_w = image.second;
             a.kernel_h = kernel.first, a.kernel_w = kernel.second;
             a.stride_h = stride.first, a.stride_w = stride.second;
             a.pad_h = pad.first, a.pad_w = pad.second;
             a.dilation_h = dilation.first, a.dilation_w = dilation.second;
             return p.conv(x, a, weight, address(bias));
           })
      .def("batch_norm",
           [=](P& p, int x, int64_t outer, int64_t channels, double eps, int64_t mean,
               int64_t variance, Source gain, Source shift) {
             return p.batch_norm(x, outer, channels, eps, mean, variance, address(gain),
                                 address(shift));
           })
      .def("pool",  // bounds (outputs + 1,), index (taps,), factor (outputs,) or (taps,) or null
           [](P& p, int x, cpu::Pool mode, int64_t channels, int64_t outputs, Address bounds,
              int64_t taps, Address index, Address factor, bool per_tap) {
             const auto *b = in<int64_t>(bounds), *i = in<int64_t>(index);
             const auto* f = in<double>(factor);
             std::vector<double> factors;
             if (factor != 0) factors.assign(f, f + (per_tap ? taps : outputs));
             return p.pool(x, mode, channels, {b, b + outputs + 1}, {i, i + taps},
                           std::move(factors));
           },
           py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
           py::arg("per_tap") = false)
      .def("batch_norm_own",
           [=](P& p, int x, int64_t outer, int64_t channels, double eps, Source gain, Source shift,
               Source keep_mean, Source keep_variance, double momentum) {
             return p.batch_norm_own(x, outer, channels, eps, address(gain), address(shift),
                                     address(keep_mean), address(keep_variance), momentum);
           },
           py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
           py::arg("momentum") = 0.1)
      .def("dropout",  // index: which number of its sample decides over each row
           [](P& p, int x, double rate, double below, int64_t number, int64_t count,
              Address index) {
             const int64_t* from = in<int64_t>(index);
             return p.dropout(x, rate, below, number, count, {from, from + p.features(x)});
           })
      .def("finish", &P::finish)
      .def_property_readonly("n", &P::n)
      .def_property_readonly("mixes", &P::mixes)
      .def_property_readonly("draws", &P::draws)
      .def_property_readonly("ops", [](const P& p) { return p.ops().size(); })
      .def("features", &P::features)
      .def_property_readonly("output", &P::output)
      .def("op_list", &op_list, py::arg("fused") = true)
      .def("uses",  // (source, elements) of each
           [](const P& p) {
             std::vector<Pair> uses;
             for (const Use& use : p.uses()) uses.emplace_back(use.source, use.size());
             return uses;
           });
}

template <typename T>
void bind(py::module_& m, const char* name) {
  using P = Program<T>;
  py::class_<P, OpList>(m, name)
      .def(py::init([](int64_t n, Address constants, int64_t count) {
             return std::make_unique<P>(
                 n, std::vector<T>(in<T>(constants), in<T>(constants) + count));
           }))
      .def("constants",
           [](P& p, int64_t count, Address values) { return p.constants(count, in<double>(values)); })
      .def("set_batches", &P::set_batches)
      .def("set_data", [](P& p, int64_t samples, Address x) { p.set_data(samples, in<T>(x)); })
      .def("set_loss",
           [](P& p, cpu::Loss kind, int64_t classes, int64_t inner, double smoothing,
              std::vector<double> weight, std::vector<double> pos_weight, Address index,
              Address dense, int64_t outer, double a, double b) {
             p.set_loss(kind, classes, inner, smoothing, std::move(weight), std::move(pos_weight),
                        in<int64_t>(index), in<double>(dense), outer, a, b);
           },
           py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
           py::arg("outer") = 1, py::arg("a") = 0.0, py::arg("b") = 0.0)
      .def_property_readonly("samples", &P::samples)
      .def_property_readonly("tile", &P::tile)
      .def_property_readonly("lanes", &P::lanes)
      .def_property_readonly("batches", &P::batches)
      .def("constant_values",
           [](const P& p) {
             return std::vector<double>(p.constants().begin(), p.constants().end());
           })
      .def("resident_plan", &resident_plan<T>);
}

}  // namespace

void pylandscape::bind_programs(py::module_& m) {
  bind_ops(m);
  bind<float>(m, "ProgramF32");
  bind<double>(m, "ProgramF64");
}
