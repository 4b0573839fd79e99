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

// x (starts, size), or (size,) for one start: neighbouring elements, beside the other tensor. Gives how
// far apart the starts are.
inline int64_t expect_rows(const Tensor& x, const char* name, bool several, int64_t starts,
                           int64_t size, const Tensor& beside) {
  const bool fits = x.dim() == (several ? 2 : 1) && x.size(-1) == size &&
                    (!several || x.size(0) == starts) && (size < 2 || x.stride(-1) == 1);
  if (!several) expect(fits, name, ": expected a contiguous vector (", size, ",), got shape ", shape_of(x));
  else expect(fits, name, ": expected rows (", starts, ", ", size, ") of neighbouring elements, got shape ",
              shape_of(x));
  expect(x.device() == beside.device(), name, ": expected the device of the basis");
  return several ? x.stride(0) : 0;
}

inline void expect_starts(int64_t starts) {
  expect(starts >= 1 && starts <= cuda::kMostStarts, "starts: expected 1 .. ", cuda::kMostStarts,
         ", got ", starts);
}

template <typename T>
Tensor run_basis_pass(cuda::BasisArgs<T> args, const Tensor& basis, const Tensor& source,
                      const Tensor& coefficients, Tensor& w) {
  const Launch launch(basis);
  args.basis = basis.const_data_ptr<T>();
  if (source.scalar_type() == basis.scalar_type()) args.source = source.const_data_ptr<T>();
  else args.source_double = source.const_data_ptr<double>();
  args.c = coefficients.const_data_ptr<double>();
  args.w = w.mutable_data_ptr<T>();
  const bool same = static_cast<const void*>(args.w) == static_cast<const void*>(args.source);
  if (same && args.first == args.rows) args.w = nullptr;
  Tensor parts = torch::stable::new_empty(
      basis, {args.starts, args.rows + 1, cuda::basis_groups(args.rows, args.n, sizeof(T))},
      ScalarType::Double);
  Tensor out = basis.dim() == 3
                   ? torch::stable::new_empty(basis, {args.starts, args.rows + 1}, ScalarType::Double)
                   : torch::stable::new_empty(basis, {args.rows + 1}, ScalarType::Double);
  args.parts = parts.mutable_data_ptr<double>();
  check(cuda::basis_pass(args, out.mutable_data_ptr<double>(), launch.stream()));
  return out;
}

template <typename T>
cuda::BasisArgs<T> basis_args(const Tensor& basis, const Tensor& source, const Tensor& coefficients,
                              const Tensor& w) {
  const bool several = basis.dim() == 3;
  cuda::BasisArgs<T> args{};
  args.starts = several ? basis.size(0) : 1, args.basis_step = several ? basis.stride(0) : 0;
  args.rows = basis.size(-2), args.n = basis.size(-1), args.stride = basis.stride(-2);
  args.w_step = expect_rows(w, "w", several, args.starts, args.n, basis);
  args.source_step = expect_rows(source, "source", several, args.starts, args.n, basis);
  const int64_t subtracted = coefficients.size(-1);
  expect(coefficients.dim() == (several ? 2 : 1) && subtracted <= args.rows,
         "coefficients: expected at most ", args.rows, ", got shape ", shape_of(coefficients));
  args.c_step =
      expect_rows(coefficients, "coefficients", several, args.starts, subtracted, basis);
  args.first = args.rows - subtracted;
  return args;
}

// w (n,) = source - Q^T c for the last rows of Q (m, n), as many as c (k,) float64 has; gives
// (m + 1,) float64: Q w, then ||w||. source (n,): w itself, another vector of basis' dtype, or
// float64. k = 0 and source = w: measured only. Several starts: one more leading dimension of each.
inline Tensor basis_pass_(const Tensor& basis, const Tensor& source, const Tensor& coefficients,
                          Tensor w) {
  const ScalarType type = basis.scalar_type();
  expect(type == ScalarType::Float || type == ScalarType::Double,
         "basis: expected float32 or float64");
  expect((basis.dim() == 2 || basis.dim() == 3) && basis.size(-2) <= cuda::kMostBasisRows &&
             basis.size(-1) > 0,
         "basis: expected shape (m, n) or (starts, m, n), m <= ", cuda::kMostBasisRows,
         ", n > 0, got ", shape_of(basis));
  if (basis.dim() == 3) expect_starts(basis.size(0));
  expect(basis.stride(-1) == 1 || basis.size(-1) == 1,
         "basis: expected rows of neighbouring elements");
  expect(w.scalar_type() == type, "w: expected basis' dtype");
  expect(source.scalar_type() == type || source.scalar_type() == ScalarType::Double,
         "source: expected basis' dtype or float64");
  expect(coefficients.scalar_type() == ScalarType::Double && coefficients.dim() > 0,
         "coefficients: expected float64 vectors");
  return type == ScalarType::Float
             ? run_basis_pass(basis_args<float>(basis, source, coefficients, w), basis, source,
                              coefficients, w)
             : run_basis_pass(basis_args<double>(basis, source, coefficients, w), basis, source,
                              coefficients, w);
}

template <typename T, typename S>
Tensor run_row_dots(const Tensor& rows, const Tensor& others, int64_t other_step) {
  const Launch launch(rows);
  cuda::DotArgs<T, S> args{};
  args.starts = rows.size(0), args.n = rows.size(1);
  args.x = rows.const_data_ptr<T>(), args.y = others.const_data_ptr<S>();
  args.x_step = rows.stride(0), args.y_step = other_step;
  Tensor parts = torch::stable::new_empty(rows, {args.starts, cuda::dot_groups(args.n)},
                                          ScalarType::Double);
  Tensor out = torch::stable::new_empty(rows, {args.starts}, ScalarType::Double);
  args.parts = parts.mutable_data_ptr<double>();
  check(cuda::row_dots(args, out.mutable_data_ptr<double>(), launch.stream()));
  return out;
}

inline void expect_matrix(const Tensor& rows) {
  expect(rows.scalar_type() == ScalarType::Float || rows.scalar_type() == ScalarType::Double,
         "rows: expected float32 or float64");
  expect(rows.dim() == 2 && rows.size(1) > 0, "rows: expected shape (starts, n), n > 0, got ",
         shape_of(rows));
  expect_starts(rows.size(0));
  expect_rows(rows, "rows", true, rows.size(0), rows.size(1), rows);
}

// (starts,) float64: x_i . y_i of rows x (starts, n) and others y (starts, n), of the rows' dtype or
// float64.
inline Tensor row_dots(const Tensor& rows, const Tensor& others) {
  expect_matrix(rows);
  const ScalarType type = rows.scalar_type(), other = others.scalar_type();
  expect(other == type || other == ScalarType::Double,
         "others: expected the rows' dtype or float64");
  const int64_t step = expect_rows(others, "others", true, rows.size(0), rows.size(1), rows);
  if (type == ScalarType::Double) return run_row_dots<double, double>(rows, others, step);
  return other == ScalarType::Double ? run_row_dots<float, double>(rows, others, step)
                                     : run_row_dots<float, float>(rows, others, step);
}

template <typename T>
void run_scale_rows(Tensor& rows, const double* factors) {
  const Launch launch(rows);
  cuda::ScaleArgs<T> args{};
  args.starts = rows.size(0), args.n = rows.size(1), args.step = rows.stride(0);
  args.x = rows.mutable_data_ptr<T>();
  for (int64_t i = 0; i < args.starts; ++i) args.factor[i] = factors[i];
  check(cuda::scale_rows(args, launch.stream()));
}

// x_i <- f_i x_i, rows x (starts, n); factors (starts,) float64 on the CPU.
inline Tensor scale_rows_(Tensor rows, const Tensor& factors) {
  expect_matrix(rows);
  expect(factors.is_cpu() && factors.scalar_type() == ScalarType::Double && factors.dim() == 1 &&
             factors.size(0) == rows.size(0),
         "factors: expected (", rows.size(0), ",) float64 on the CPU, got shape ",
         shape_of(factors));
  const Tensor host = dense(factors);
  const double* f = host.const_data_ptr<double>();
  if (rows.scalar_type() == ScalarType::Float) run_scale_rows<float>(rows, f);
  else run_scale_rows<double>(rows, f);
  return rows;
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
  m.impl("row_dots", TORCH_BOX(&row_dots));
  m.impl("scale_rows_", TORCH_BOX(&scale_rows_));
  m.impl("small_eigenvalues", TORCH_BOX(&small_eigenvalues));
}

}  // namespace pylandscape
