// The stateful half of the core, through pybind11: its enums here, its classes in files of their own.
#include "binding/module.h"

#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "derivatives/derivatives.h"

namespace py = pybind11;
using namespace pylandscape;

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", [] { return cpu::isa_name(cpu::isa()); });

  py::enum_<cpu::Unary> unary(m, "Unary");
  constexpr const char* kUnary[] = {"affine", "relu", "leaky_relu", "tanh", "sigmoid",
                                    "gelu", "gelu_tanh", "silu", "softplus", "elu",
                                    "clamp", "hardtanh", "square", "abs", "exp",
                                    "hardswish", "mish", "softsign", "threshold", "log",
                                    "log1p", "sqrt", "rsqrt", "reciprocal", "power",
                                    "sin", "cos", "erf", "length", "positive"};
  static_assert(sizeof(kUnary) / sizeof(*kUnary) == cpu::kUnaryCount);
  for (int i = 0; i < cpu::kUnaryCount; ++i) unary.value(kUnary[i], static_cast<cpu::Unary>(i));
  py::enum_<cpu::Binary> binary(m, "Binary");
  constexpr const char* kBinary[] = {"add", "sub", "mul", "div"};
  static_assert(sizeof(kBinary) / sizeof(*kBinary) == cpu::kBinaryCount);
  for (int i = 0; i < cpu::kBinaryCount; ++i)
    binary.value(kBinary[i], static_cast<cpu::Binary>(i));
  py::enum_<cpu::Cell>(m, "Cell").value("lstm", cpu::Cell::kLstm).value("gru", cpu::Cell::kGru);
  py::enum_<cpu::Loss>(m, "Loss")
      .value("cross_entropy", cpu::Loss::kCrossEntropy)
      .value("nll", cpu::Loss::kNll)
      .value("mse", cpu::Loss::kMse)
      .value("bce_with_logits", cpu::Loss::kBceWithLogits)
      .value("huber", cpu::Loss::kHuber)
      .value("smooth_l1", cpu::Loss::kSmoothL1)
      .value("bce", cpu::Loss::kBce)
      .value("kl_div", cpu::Loss::kKlDiv)
      .value("poisson_log", cpu::Loss::kPoissonLog)
      .value("poisson", cpu::Loss::kPoisson);

  py::enum_<cpu::Pool>(m, "Pool")
      .value("max", cpu::Pool::kMax)
      .value("max_even", cpu::Pool::kMaxEven)
      .value("sum", cpu::Pool::kSum);

  py::enum_<Matrix>(m, "Matrix")
      .value("hessian", Matrix::kHessian)
      .value("gauss_newton", Matrix::kGaussNewton)
      .value("covariance", Matrix::kCovariance);

  bind_programs(m);
  bind_questions(m);
  bind_constants(m);
  bind_lanczos(m);
  bind_points(m);
  bind_training(m);
  bind_topology(m);
}
