// What stands around torch's convolutions and products on a GPU, as tensor ops: checks and launches.
// Nothing here waits for the device or reads host memory later, so all of it can be captured in a
// CUDA graph.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "binding/cuda_launch.h"
#include "binding/program_ops.h"
#include "cuda/layers.h"

namespace pylandscape {

// sources (6,) int64 on the CPU: where weight, bias, gain, shift, mean and variance are.
inline void check_source(int64_t source, int64_t count, int64_t n, int64_t constants) {
  if (source == cuda::kNowhere) return;
  const int64_t at = source >= 0 ? source : -1 - source;
  expect(at + count <= (source >= 0 ? n : constants), "sources: expected ", count,
         " elements at ", source, " of theta (", n, ") or the constants (", constants, ")");
}

template <typename T>
void run_fold(const Tensor& theta, const Tensor& c, const Tensor& d, const Tensor& constants,
              const int64_t* s, double eps, Tensor& affine, Tensor& out) {
  const Launch launch(theta);
  cuda::FoldArgs<T> args{};
  args.g = out.size(0), args.k = c.size(1), args.n = theta.size(1);
  args.rows = out.size(1), args.taps = out.size(2), args.channels = out.size(3);
  args.one_theta = theta.size(0) == 1;
  args.theta = theta.const_data_ptr<T>(), args.c = c.const_data_ptr<double>();
  args.d = d.const_data_ptr<T>(), args.constants = constants.const_data_ptr<T>();
  args.weight = s[0], args.bias = s[1], args.gain = s[2], args.shift = s[3];
  args.mean = s[4], args.variance = s[5], args.eps = eps;
  args.affine = affine.numel() > 0 ? affine.mutable_data_ptr<T>() : nullptr;
  args.out = out.numel() > 0 ? out.mutable_data_ptr<T>() : nullptr;
  check(cuda::fold(args, launch.stream()));
}

// theta (1 or g, n), coefficients (g, k) float64, directions (k, n), constants -> weights (g, rows,
// taps, channels) times the scales and affine (2, g, rows): scales and shifts. Without a weight, the
// weights are empty; without bias and batch norm, the affine is.
inline std::tuple<Tensor, Tensor> fold(const Tensor& theta, const Tensor& coefficients,
                                       const Tensor& directions, const Tensor& constants,
                                       const Tensor& sources, int64_t rows, int64_t channels,
                                       int64_t taps, double eps) {
  expect_floating(theta, "theta");
  const ScalarType type = theta.scalar_type();
  expect(theta.dim() == 2 && coefficients.dim() == 2 && directions.dim() == 2 &&
             directions.size(0) == coefficients.size(1) && directions.size(1) == theta.size(1) &&
             (theta.size(0) == 1 || theta.size(0) == coefficients.size(0)),
         "theta: expected (1 or g, n) for coefficients (g, k) and directions (k, n), got ",
         shape_of(theta), ", ", shape_of(coefficients), " and ", shape_of(directions));
  expect_tensor(theta, "theta", type, theta.numel(), theta);
  expect_tensor(coefficients, "coefficients", ScalarType::Double, coefficients.numel(), theta);
  expect_tensor(directions, "directions", type, directions.numel(), theta);
  expect_tensor(constants, "constants", type, constants.numel(), theta);
  expect(sources.is_cpu() && sources.scalar_type() == ScalarType::Long && sources.numel() == 6 &&
             sources.is_contiguous(),
         "sources: expected 6 int64 on the CPU, got shape ", shape_of(sources));
  expect(rows >= 0 && channels >= 0 && taps >= 0, "rows, channels, taps: expected sizes >= 0");
  const int64_t* s = sources.const_data_ptr<int64_t>();
  const int64_t g = coefficients.size(0), n = theta.size(1), all = constants.numel();
  check_source(s[0], rows * channels * taps, n, all);
  for (int i = 1; i < 6; ++i) check_source(s[i], rows, n, all);
  const bool weighs = s[0] != cuda::kNowhere, norm = s[4] != cuda::kNowhere;
  expect(norm == (s[5] != cuda::kNowhere), "sources: expected a mean and a variance, or neither");
  const bool moves = norm || s[1] != cuda::kNowhere;
  Tensor out = torch::stable::new_empty(theta, {g, rows, weighs ? taps : 0, channels});
  Tensor affine = torch::stable::new_empty(theta, {moves ? 2 : 0, g, rows});
  const auto run = type == ScalarType::Float ? &run_fold<float> : &run_fold<double>;
  run(theta, coefficients, directions, constants, s, eps, affine, out);
  return {out, affine};
}

// The step from one point to the next of an operand (1 or g, ...), 0 where there is one for all.
inline int64_t step_of(const Tensor& x, const char* name, int64_t g, int64_t each,
                       const Tensor& out) {
  const bool one = x.dim() > 0 && x.size(0) == 1;
  expect_tensor(x, name, out.scalar_type(), (one ? 1 : g) * each, out);
  return one ? 0 : each;
}

template <typename T>
void run_epilogue(Tensor& out, const Tensor& x, const Tensor& scale, const Tensor& bias,
                  const Tensor& add, cpu::Unary function, double a, double b) {
  const Launch launch(out);
  cuda::EpilogueArgs<T> args{};
  args.g = out.size(0), args.rows = out.size(1), args.m = out.size(2);
  const auto take = [&](const Tensor& from, const char* name, int64_t each, const T*& to,
                        int64_t& step) {
    if (from.dim() == 1 && from.numel() == 0) return;
    step = step_of(from, name, args.g, each, out);
    to = from.const_data_ptr<T>();
  };
  expect(x.dim() == 3, "x: expected shape (1 or g, rows, m), got ", shape_of(x));
  take(x, "x", args.rows * args.m, args.x, args.x_step);
  take(scale, "scale", args.m, args.scale, args.scale_step);
  take(bias, "bias", args.m, args.bias, args.bias_step);
  take(add, "add", args.rows * args.m, args.add, args.add_step);
  args.function = function, args.a = a, args.b = b;
  args.out = out.mutable_data_ptr<T>();
  expect(args.g == 1 || !((args.x == args.out && args.x_step == 0) ||
                          (args.add == args.out && args.add_step == 0)),
         "out: expected other memory than what all points read");
  check(cuda::epilogue(args, launch.stream()));
}

// out (g, rows, m) = f(x * scale + bias + add): x and add (1 or g, rows, m), scale and bias (1 or g,
// m); what is (0,) is left out. out may be x or add.
inline Tensor epilogue_(Tensor out, const Tensor& x, const Tensor& scale, const Tensor& bias,
                        const Tensor& add, int64_t function, double a, double b) {
  expect_floating(out, "out");
  expect(out.dim() == 3 && out.is_contiguous(),
         "out: expected a contiguous (g, rows, m), got shape ", shape_of(out));
  const auto run =
      out.scalar_type() == ScalarType::Float ? &run_epilogue<float> : &run_epilogue<double>;
  run(out, x, scale, bias, add, unary_of(function), a, b);
  return out;
}

template <typename T>
void run_pool(const Tensor& x, const Tensor& bounds, const Tensor& index, const Tensor& factor,
              cpu::Pool mode, Tensor& y) {
  const Launch launch(x);
  cuda::WindowArgs<T> args{};
  args.rows = x.size(0), args.pixels = x.size(1), args.channels = x.size(2);
  args.outputs = y.size(1), args.mode = mode;
  args.bounds = bounds.const_data_ptr<int64_t>(), args.index = index.const_data_ptr<int64_t>();
  args.factor = factor.numel() > 0 ? factor.const_data_ptr<double>() : nullptr;
  args.per_tap = factor.numel() != args.outputs;
  args.x = x.const_data_ptr<T>(), args.y = y.mutable_data_ptr<T>();
  check(cuda::pool_windows(args, launch.stream()));
}

// x (rows, pixels, channels) -> (rows, outputs, channels). What `bounds` and `index` hold is not
// checked here: they come from a Program, which did.
inline Tensor pool_windows(const Tensor& x, const Tensor& bounds, const Tensor& index,
                           const Tensor& factor, int64_t mode) {
  expect_floating(x, "x");
  expect(x.dim() == 3 && x.is_contiguous(),
         "x: expected a contiguous (rows, pixels, channels), got shape ", shape_of(x));
  expect(bounds.numel() > 0, "bounds: expected outputs + 1 elements");
  expect_tensor(bounds, "bounds", ScalarType::Long, bounds.numel(), x);
  expect_tensor(index, "index", ScalarType::Long, index.numel(), x);
  const int64_t outputs = bounds.numel() - 1;
  const bool per_tap = factor.numel() == index.numel();
  expect_tensor(factor, "factor", ScalarType::Double,
                factor.numel() > 0 ? (per_tap ? index.numel() : outputs) : 0, x);
  expect(mode >= 0 && mode <= static_cast<int64_t>(cpu::Pool::kSum), "mode: expected 0 .. 2");
  Tensor y = torch::stable::new_empty(x, {x.size(0), outputs, x.size(2)});
  const auto run = x.scalar_type() == ScalarType::Float ? &run_pool<float> : &run_pool<double>;
  run(x, bounds, index, factor, static_cast<cpu::Pool>(mode), y);
  return y;
}

template <typename T>
void run_cell(const Tensor& x, const Tensor& h, const Tensor& state, int64_t first,
              cpu::Cell kind, int64_t hidden, Tensor& y) {
  const Launch launch(x);
  cuda::CellArgs<T> args{};
  args.rows = x.size(0), args.hidden = hidden, args.state_step = state.size(1), args.kind = kind;
  args.x = x.const_data_ptr<T>(), args.h = h.const_data_ptr<T>();
  args.state = state.const_data_ptr<T>() + first, args.y = y.mutable_data_ptr<T>();
  check(cuda::recurrent_cell(args, launch.stream()));
}

// x and h (rows, gates * hidden), state (rows, width) of which `hidden` elements from `first` on
// count -> (rows, 2 hidden) of an LSTM, (rows, hidden) of a GRU.
inline Tensor recurrent_cell(const Tensor& x, const Tensor& h, const Tensor& state, int64_t first,
                             int64_t kind) {
  expect_floating(x, "x");
  expect(kind == 0 || kind == 1, "kind: expected 0 (LSTM) or 1 (GRU), got ", kind);
  const cpu::Cell cell = static_cast<cpu::Cell>(kind);
  const int64_t gates = cpu::cell_gates(cell);
  expect(x.dim() == 2 && x.size(1) % gates == 0, "x: expected shape (rows, ", gates,
         " * hidden), got ", shape_of(x));
  const int64_t rows = x.size(0), hidden = x.size(1) / gates;
  expect_tensor(x, "x", x.scalar_type(), x.numel(), x);
  expect_tensor(h, "h", x.scalar_type(), x.numel(), x);
  expect(state.dim() == 2 && state.size(0) == rows && first >= 0 &&
             first + hidden <= state.size(1),
         "state: expected ", hidden, " columns from ", first, " on, got shape ", shape_of(state));
  expect_tensor(state, "state", x.scalar_type(), state.numel(), x);
  Tensor y =
      torch::stable::new_empty(x, {rows, cell == cpu::Cell::kLstm ? 2 * hidden : hidden});
  const auto run = x.scalar_type() == ScalarType::Float ? &run_cell<float> : &run_cell<double>;
  run(x, h, state, first, cell, hidden, y);
  return y;
}

inline void implement_layers(torch::stable::detail::StableLibrary& m) {
  m.impl("fold", TORCH_BOX(&fold));
  m.impl("epilogue_", TORCH_BOX(&epilogue_));
  m.impl("pool_windows", TORCH_BOX(&pool_windows));
  m.impl("recurrent_cell", TORCH_BOX(&recurrent_cell));
}

}  // namespace pylandscape
