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
  // Only on the CPU (ops.cpp).
  m.def("direction_sums(Tensor theta, int first, Tensor segments, int seed, int stream) -> Tensor");
  m.def("direction_part_(Tensor(a!) out, int first, Tensor? theta, Tensor segments, "
        "Tensor? factors, int seed, int stream) -> Tensor(a!)");
  m.def("direction_sum_(Tensor(a!) out, Tensor base, int first, Tensor? theta, Tensor segments, "
        "Tensor? factors, Tensor names, Tensor coefficients) -> Tensor(a!)");
  // Only on a GPU (program_ops.h).
  m.def("resident_losses(Tensor program, Tensor external, Tensor list, Tensor targets, "
        "Tensor loss_weights, Tensor base, Tensor directions, Tensor coordinates, bool hits) -> "
        "Tensor");
  m.def("resident_outputs(Tensor program, Tensor external, Tensor list, Tensor targets, "
        "Tensor loss_weights, Tensor base, Tensor directions, Tensor coordinates) -> Tensor");
  m.def("combine_terms(Tensor terms, Tensor coefficients, Tensor bias, int function, float a, "
        "float b) -> Tensor");
  m.def("output_losses_(Tensor program, Tensor outputs, int first, Tensor targets, "
        "Tensor loss_weights, Tensor(a!) parts, bool hits) -> Tensor(a!)");
  m.def("sum_parts(Tensor parts) -> Tensor");
  // Only on a GPU (derivative_ops.h, product_ops.h).
  m.def("pair_products(Tensor a, Tensor b, Tensor c, Tensor d, Tensor bias, Tensor first, "
        "bool positive, Tensor curved, Tensor r, bool keep) -> (Tensor, Tensor)");
  m.def("pair_sums_(Tensor(a!) out, int at, int bias_at, bool transposed, Tensor a, Tensor b, "
        "Tensor c, Tensor d) -> Tensor(a!)");
  m.def("add_row_sums_(Tensor(a!) out, int at, Tensor x, int m) -> Tensor(a!)");
  m.def("bend_(Tensor(a!) x, Tensor bias, Tensor first, bool positive, Tensor curved, Tensor r) -> "
        "Tensor");
  m.def("unary_slopes(Tensor x, Tensor dy, int function, float a, float b) -> "
        "(Tensor, Tensor, Tensor)");
  m.def("scatter_sums(Tensor x, Tensor start, Tensor list) -> Tensor");
  m.def("loss_slopes(Tensor program, Tensor outputs, int first, int count, Tensor targets, "
        "Tensor loss_weights, Tensor slopes, Tensor tangents) -> Tensor");
  m.def("softmax_slopes(Tensor y, Tensor input, Tensor dy, Tensor ry, bool log, bool tangent, "
        "int outer, int size, int inner) -> Tensor");
  m.def("norm_slopes(Tensor x, Tensor input, Tensor dy, Tensor rx, Tensor gain, Tensor rgain, "
        "Tensor rshift, int g, int which, int outer, int size, int pixels, bool channels, "
        "float eps, bool wanted) -> (Tensor, Tensor)");
  m.def("pool_winners(Tensor x, Tensor bounds, Tensor index, bool even) -> (Tensor, Tensor)");
  m.def("pool_tangent(Tensor input, Tensor x, Tensor win, Tensor share, Tensor bounds, "
        "Tensor index) -> Tensor");
  m.def("pool_reverse(Tensor input, Tensor x, Tensor win, Tensor share, Tensor index, "
        "Tensor factor, Tensor start, Tensor list, Tensor window) -> Tensor");
  // Only on a GPU (layer_ops.h).
  m.def("fold(Tensor theta, Tensor coefficients, Tensor directions, Tensor constants, "
        "Tensor sources, int rows, int channels, int taps, float eps) -> (Tensor, Tensor)");
  m.def("epilogue_(Tensor(a!) out, Tensor x, Tensor scale, Tensor bias, Tensor add, int function, "
        "float a, float b) -> Tensor(a!)");
  m.def("pool_windows(Tensor x, Tensor bounds, Tensor index, Tensor factor, int mode) -> Tensor");
  m.def("recurrent_cell(Tensor x, Tensor h, Tensor state, int first, int kind) -> Tensor");
  // Only on a GPU (spectral_ops.h).
  m.def("basis_pass_(Tensor basis, Tensor source, Tensor coefficients, Tensor(a!) w) -> Tensor");
  m.def("row_dots(Tensor rows, Tensor others) -> Tensor");
  m.def("scale_rows_(Tensor(a!) rows, Tensor factors) -> Tensor(a!)");
  m.def("small_eigenvalues(Tensor matrices) -> Tensor");
  // Only on a GPU (point_ops.h).
  m.def("point_hessians_(Tensor program, Tensor list, Tensor constants, Tensor x, Tensor targets, "
        "Tensor loss_weights, Tensor points, float denominator, Tensor(a!) losses, "
        "Tensor(b!) gradients, Tensor(c!) hessians) -> ()");
}

}  // namespace pylandscape
