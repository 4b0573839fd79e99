// The schemas of all ops, whatever runs them.
#pragma once
#include <torch/csrc/stable/library.h>

namespace pylandscape {

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def("random_direction(Tensor theta, Tensor segments, str mode, int seed, int stream) -> "
        "Tensor");
  m.def("random_direction.out(Tensor theta, Tensor segments, str mode, int seed, int stream, *, "
        "Tensor(a!) out) -> Tensor(a!)");
  m.def("normalize_direction(Tensor direction, Tensor theta, Tensor segments, str mode) -> Tensor");
  m.def("normalize_direction.out(Tensor direction, Tensor theta, Tensor segments, str mode, *, "
        "Tensor(a!) out) -> Tensor(a!)");
  m.def("gaussian.out(int seed, int stream, int first, *, Tensor(a!) out) -> Tensor(a!)");
  m.def("perturb(Tensor theta, Tensor coefficients, Tensor directions) -> Tensor");
  m.def("perturb.out(Tensor theta, Tensor coefficients, Tensor directions, *, Tensor(a!) out) -> "
        "Tensor(a!)");
  // Only on a GPU (program_ops.h).
  m.def("resident_losses(Tensor program, Tensor external, Tensor list, Tensor targets, "
        "Tensor loss_weights, Tensor base, Tensor directions, Tensor coordinates, bool hits) -> "
        "Tensor");
  m.def("resident_outputs(Tensor program, Tensor external, Tensor list, Tensor targets, "
        "Tensor loss_weights, Tensor base, Tensor directions, Tensor coordinates) -> Tensor");
  m.def("combine_terms(Tensor terms, Tensor coefficients, Tensor bias, int function, float a, "
        "float b) -> Tensor");
  m.def("activate_(Tensor(a!) x, Tensor bias, int function, float a, float b) -> Tensor(a!)");
  m.def("output_losses_(Tensor program, Tensor outputs, int first, Tensor targets, "
        "Tensor loss_weights, Tensor(a!) parts, bool hits) -> Tensor(a!)");
  m.def("sum_parts(Tensor parts) -> Tensor");
  // Only on a GPU (spectral_ops.h).
  m.def("basis_pass_(Tensor basis, Tensor source, Tensor coefficients, Tensor(a!) w) -> Tensor");
  m.def("row_dots(Tensor rows, Tensor others) -> Tensor");
  m.def("scale_rows_(Tensor(a!) rows, Tensor factors) -> Tensor(a!)");
  m.def("small_eigenvalues(Tensor matrices) -> Tensor");
}

}  // namespace pylandscape
