// Curvature on a GPU, as tensor ops: passes over a Lanczos basis, eigenvalues of
// small matrices. Nothing here waits for the device.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "binding/cuda_launch.h"
#include "binding/direction_ops.h"
#include "cuda/basis.h"
#include "cuda/eigenvalues.h"

namespace pylandscape {

inline void expect_vector(const Tensor& x, const char* name, int64_t size, const Tensor& beside) {
  expect(x.dim() == 1 && x.size(0) == size && x.is_contiguous(), name,
         ": expected a contiguous vector (", size, ",), got shape ", shape_of(x));
  expect(x.device() == beside.device(), name, ": expected basis' device");
}

template <typename T>
Tensor run_basis_pass(const Tensor& basis, const Tensor& source, const Tensor& coefficients,
                      Tensor& w) {
  const Launch launch(basis);
  cuda::BasisArgs<T> args{};
  args.rows = basis.size(0), args.n = basis.size(1), args.stride = basis.stride(0);
  args.basis = basis.const_data_ptr<T>();
  if (source.scalar_type() == basis.scalar_type()) args.source = source.const_data_ptr<T>();
  else args.source_double = source.const_data_ptr<double>();
  args.first = args.rows - coefficients.size(0);
  args.c = coefficients.const_data_ptr<double>();
  args.w = w.mutable_data_ptr<T>();
  const bool same = static_cast<const void*>(args.w) == static_cast<const void*>(args.source);
  if (same && coefficients.size(0) == 0) args.w = nullptr;
  Tensor parts = torch::stable::new_empty(
      basis, {args.rows + 1, cuda::basis_groups(args.rows, args.n, sizeof(T))}, ScalarType::Double);
  Tensor out = torch::stable::new_empty(basis, {args.rows + 1}, ScalarType::Double);
  args.parts = parts.mutable_data_ptr<double>();
  check(cuda::basis_pass(args, out.mutable_data_ptr<double>(), launch.stream()));
  return out;
}

// w (n,) = source - Q^T c for the last rows of Q (m, n), as many as c (k,) float64 has; gives
// (m + 1,) float64: Q w, then ||w||. source (n,): w itself, another vector of basis' dtype, or
// float64. k = 0 and source = w: measured only.
inline Tensor basis_pass_(const Tensor& basis, const Tensor& source, const Tensor& coefficients,
                          Tensor w) {
  const ScalarType type = basis.scalar_type();
  expect(type == ScalarType::Float || type == ScalarType::Double,
         "basis: expected float32 or float64");
  expect(basis.dim() == 2 && basis.size(0) <= cuda::kMostBasisRows && basis.size(1) > 0,
         "basis: expected shape (m, n), m <= ", cuda::kMostBasisRows, ", n > 0, got ",
         shape_of(basis));
  const int64_t rows = basis.size(0), n = basis.size(1);
  expect(basis.stride(1) == 1 || n == 1, "basis: expected rows of neighbouring elements");
  expect_vector(w, "w", n, basis), expect_vector(source, "source", n, basis);
  expect(w.scalar_type() == type, "w: expected basis' dtype");
  expect(source.scalar_type() == type || source.scalar_type() == ScalarType::Double,
         "source: expected basis' dtype or float64");
  expect(coefficients.scalar_type() == ScalarType::Double, "coefficients: expected float64");
  expect(coefficients.dim() == 1 && coefficients.size(0) <= rows,
         "coefficients: expected at most ", rows, ", got shape ", shape_of(coefficients));
  expect_vector(coefficients, "coefficients", coefficients.size(0), basis);
  return type == ScalarType::Float ? run_basis_pass<float>(basis, source, coefficients, w)
                                   : run_basis_pass<double>(basis, source, coefficients, w);
}

// matrices (count, n, n) float64, of which the lower triangles are read -> (count, n), ascending.
inline Tensor small_eigenvalues(const Tensor& matrices) {
  expect(matrices.scalar_type() == ScalarType::Double, "matrices: expected float64");
  expect(matrices.dim() == 3 && matrices.size(1) == matrices.size(2) &&
             matrices.size(1) <= cuda::kMostOrder,
         "matrices: expected shape (count, n, n), n <= ", cuda::kMostOrder, ", got ",
         shape_of(matrices));
  const Launch launch(matrices);
  const Tensor given = dense(matrices);
  const int64_t count = given.size(0), n = given.size(1);
  Tensor out = torch::stable::new_empty(given, {count, n});
  Tensor work = torch::stable::new_empty(given, {cuda::eigenvalue_work(count, n)});
  check(cuda::eigenvalues(count, n, given.const_data_ptr<double>(),
                          work.mutable_data_ptr<double>(), out.mutable_data_ptr<double>(),
                          launch.stream()));
  return out;
}

inline void implement_spectral(torch::stable::detail::StableLibrary& m) {
  m.impl("basis_pass_", TORCH_BOX(&basis_pass_));
  m.impl("small_eigenvalues", TORCH_BOX(&small_eigenvalues));
}

}  // namespace pylandscape
