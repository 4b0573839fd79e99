// Questions about the loss of many points on a GPU, as tensor ops: the parts that do not depend on
// where they run, and the launches. A plan (program/resident_plan.h) crosses as the bytes of its
// resident::Program on the CPU; everything else is on the device. Nothing here waits for the device,
// and plans become kernel parameters, so all of it can be captured in a CUDA graph.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>

#include "binding/cuda_launch.h"
#include "binding/direction_ops.h"
#include "common/resident.h"
#include "cuda/resident.h"

namespace pylandscape {

inline resident::Program plan_of(const Tensor& bytes) {
  resident::Program program;
  expect(bytes.is_cpu() && bytes.scalar_type() == ScalarType::Byte && bytes.is_contiguous() &&
             bytes.numel() == static_cast<int64_t>(sizeof(program)),
         "program: expected the ", sizeof(program), " bytes of a plan on the CPU, got shape ",
         shape_of(bytes));
  std::memcpy(&program, bytes.const_data_ptr(), sizeof(program));
  expect(program.magic == resident::Program::kMagic && program.steps >= 0 &&
             program.steps <= resident::kMaxSteps,
         "program: expected a plan of this version");
  return program;
}

inline void expect_tensor(const Tensor& x, const char* name, ScalarType type, int64_t count,
                          const Tensor& beside) {
  expect(x.scalar_type() == type, name, ": expected another dtype");
  expect(x.numel() == count && x.is_contiguous(), name, ": expected ", count,
         " contiguous elements, got shape ", shape_of(x));
  expect(x.device() == beside.device(), name, ": expected the device of the others");
}

// Targets and weights of the loss, checked.
struct LossTensors {
  cpu::LossArgs args;
  const int32_t* index = nullptr;
  const double* dense = nullptr;
  template <typename P>  // resident::Program, hessian::Program
  LossTensors(const P& program, const Tensor& targets, const Tensor& weights, const Tensor& beside)
      : args(program.loss) {
    const bool classes = program.class_targets != 0;
    expect_tensor(targets, "targets", classes ? ScalarType::Int : ScalarType::Double,
                  int64_t{program.target_rows} * program.samples, beside);
    expect_tensor(weights, "loss_weights", ScalarType::Double,
                  int64_t{program.loss_weights} + program.pos_weights, beside);
    if (classes) index = targets.const_data_ptr<int32_t>();
    else dense = targets.const_data_ptr<double>();
    const double* values = weights.numel() > 0 ? weights.const_data_ptr<double>() : nullptr;
    args.weight = program.loss_weights > 0 ? values : nullptr;
    args.pos_weight = program.pos_weights > 0 ? values + program.loss_weights : nullptr;
  }
};

inline void expect_floating(const Tensor& x, const char* name) {
  expect(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, name,
         ": expected float32 or float64");
}

inline cpu::Unary unary_of(int64_t function) {
  expect(function >= 0 && function < cpu::kUnaryCount, "function: expected 0 .. ",
         cpu::kUnaryCount - 1, ", got ", function);
  return static_cast<cpu::Unary>(function);
}

template <typename T>
Tensor run_resident(const resident::Program& p, const Tensor& external, const Tensor& list,
                    const Tensor& targets, const Tensor& weights, const Tensor& base,
                    const Tensor& directions, const Tensor& coordinates, bool hits,
                    Tensor* outputs) {
  const LossTensors loss(p, targets, weights, external);
  const int64_t g = coordinates.size(0);
  const Launch launch(external);
  Tensor parts = torch::stable::new_empty(external, {g, p.parts(), 2}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(external, {2, g}, ScalarType::Double);
  resident::Program program = p;
  program.loss = loss.args;
  cuda::ResidentArgs<T> args{};
  args.external = external.const_data_ptr<T>();
  args.list = list.const_data_ptr<int32_t>();
  args.index = loss.index, args.dense = loss.dense;
  args.base = base.const_data_ptr<T>();
  args.directions = directions.const_data_ptr<T>();
  args.coordinates = coordinates.const_data_ptr<T>();
  args.parts = parts.mutable_data_ptr<double>();
  args.outputs = outputs != nullptr ? outputs->mutable_data_ptr<T>() : nullptr;
  args.g = g, args.hits = hits;
  check(cuda::resident_losses(program, args, launch.blocks(), launch.stream()));
  check(cuda::sum_parts(g, p.parts(), args.parts, result.mutable_data_ptr<double>(),
                        launch.stream()));
  return result;
}

// external (external_rows, samples), list (index_size,), base (weights,), directions
// (directions, weights) or, of free points, none; coordinates (g, directions). -> checked
inline resident::Program check_resident(const Tensor& bytes, const Tensor& external,
                                        const Tensor& list, const Tensor& base,
                                        const Tensor& directions, const Tensor& coordinates) {
  const resident::Program p = plan_of(bytes);
  expect(p.columns > 0, "program: expected a plan that fits");
  expect_floating(external, "external");
  const ScalarType type = external.scalar_type();
  expect_tensor(external, "external", type, int64_t{p.external_rows} * p.samples, external);
  expect_tensor(list, "list", ScalarType::Int, p.index_size, external);
  expect_tensor(base, "base", type, p.weights, external);
  expect_tensor(directions, "directions", type,
                p.free_points != 0 ? 0 : int64_t{p.directions} * p.weights, external);
  expect(coordinates.dim() == 2 && coordinates.size(1) == p.directions,
         "coordinates: expected shape (g, ", p.directions, "), got ", shape_of(coordinates));
  expect_tensor(coordinates, "coordinates", type, coordinates.numel(), external);
  return p;
}

// (2, g) float64: the sums over the samples of loss terms and, if asked for, of hits.
inline Tensor resident_losses(const Tensor& program, const Tensor& external, const Tensor& list,
                              const Tensor& targets, const Tensor& loss_weights,
                              const Tensor& base, const Tensor& directions,
                              const Tensor& coordinates, bool hits) {
  const resident::Program p =
      check_resident(program, external, list, base, directions, coordinates);
  const auto run =
      external.scalar_type() == ScalarType::Float ? &run_resident<float> : &run_resident<double>;
  return run(p, external, list, targets, loss_weights, base, directions, coordinates, hits,
             nullptr);
}

// (g, samples, features): the network's outputs.
inline Tensor resident_outputs(const Tensor& program, const Tensor& external, const Tensor& list,
                               const Tensor& targets, const Tensor& loss_weights,
                               const Tensor& base, const Tensor& directions,
                               const Tensor& coordinates) {
  const resident::Program p =
      check_resident(program, external, list, base, directions, coordinates);
  Tensor outputs =
      torch::stable::new_empty(external, {coordinates.size(0), p.samples, p.features});
  const auto run =
      external.scalar_type() == ScalarType::Float ? &run_resident<float> : &run_resident<double>;
  run(p, external, list, targets, loss_weights, base, directions, coordinates, false, &outputs);
  return outputs;
}

// terms (1 + k, rows, m), coefficients (g, k), bias (g, m) or (0,) -> (g, rows, m).
template <typename T>
void run_combine(const Tensor& terms, const Tensor& c, const Tensor& bias, cpu::Unary function,
                 double a, double b, Tensor& out) {
  const Launch launch(terms);
  cuda::CombineArgs<T> args{};
  args.g = out.size(0), args.k = c.size(1), args.rows = out.size(1), args.m = out.size(2);
  args.terms = terms.const_data_ptr<T>(), args.c = c.const_data_ptr<T>();
  args.bias = bias.numel() > 0 ? bias.const_data_ptr<T>() : nullptr;
  args.function = function, args.a = a, args.b = b;
  args.out = out.mutable_data_ptr<T>();
  check(cuda::combine_terms(args, launch.stream()));
}

inline Tensor combine_terms(const Tensor& terms, const Tensor& coefficients, const Tensor& bias,
                            int64_t function, double a, double b) {
  expect_floating(terms, "terms");
  expect(terms.dim() == 3 && terms.is_contiguous() && coefficients.dim() == 2 &&
             coefficients.size(1) + 1 == terms.size(0),
         "terms: expected a contiguous (1 + k, rows, m) for coefficients (g, k), got ",
         shape_of(terms), " and ", shape_of(coefficients));
  const int64_t g = coefficients.size(0);
  expect(g <= 65535, "coefficients: expected at most 65535 points, got ", g);
  expect_tensor(coefficients, "coefficients", terms.scalar_type(), coefficients.numel(), terms);
  if (bias.numel() > 0)
    expect_tensor(bias, "bias", terms.scalar_type(), g * terms.size(2), terms);
  Tensor out = torch::stable::new_empty(terms, {g, terms.size(1), terms.size(2)});
  const auto run =
      terms.scalar_type() == ScalarType::Float ? &run_combine<float> : &run_combine<double>;
  run(terms, coefficients, bias, unary_of(function), a, b, out);
  return out;
}

template <typename T>
void run_output_losses(const resident::Program& p, const Tensor& outputs, int64_t first,
                       const LossTensors& loss, Tensor& parts, bool hits) {
  const Launch launch(outputs);
  cuda::OutputLossArgs<T> args{};
  args.g = outputs.size(0), args.first = first, args.count = outputs.size(1);
  args.samples = p.samples, args.features = p.features, args.total = parts.size(1);
  args.loss = loss.args, args.index = loss.index, args.dense = loss.dense;
  args.outputs = outputs.const_data_ptr<T>(), args.parts = parts.mutable_data_ptr<double>();
  args.hits = hits;
  check(cuda::output_losses(args, launch.stream()));
}

// Fills the parts (g, total, 2) of outputs (g, count, features) of the samples from `first` on.
inline Tensor output_losses_(const Tensor& program, const Tensor& outputs, int64_t first,
                             const Tensor& targets, const Tensor& loss_weights, Tensor parts,
                             bool hits) {
  const resident::Program p = plan_of(program);
  expect_floating(outputs, "outputs");
  const LossTensors loss(p, targets, loss_weights, outputs);
  expect(outputs.dim() == 3 && outputs.is_contiguous() && outputs.size(2) == p.features &&
             outputs.size(0) <= 65535,
         "outputs: expected a contiguous (g, count, ", p.features, "), g at most 65535, got shape ",
         shape_of(outputs));
  const int64_t total = (int64_t{p.samples} + resident::kWarp - 1) / resident::kWarp;
  expect(first >= 0 && first % resident::kWarp == 0 && first + outputs.size(1) <= p.samples,
         "first: expected a multiple of 32 within the samples, got ", first);
  expect_tensor(parts, "parts", ScalarType::Double, 2 * outputs.size(0) * total, outputs);
  expect(parts.dim() == 3 && parts.size(1) == total, "parts: expected shape (g, ", total, ", 2)");
  const auto run = outputs.scalar_type() == ScalarType::Float ? &run_output_losses<float>
                                                              : &run_output_losses<double>;
  run(p, outputs, first, loss, parts, hits);
  return parts;
}

// (2, g) of parts (g, count, 2), in a fixed order.
inline Tensor sum_parts(const Tensor& parts) {
  expect(parts.dim() == 3 && parts.size(2) == 2 && parts.is_contiguous() &&
             parts.scalar_type() == ScalarType::Double,
         "parts: expected a contiguous float64 tensor (g, count, 2), got shape ", shape_of(parts));
  const Launch launch(parts);
  Tensor result = torch::stable::new_empty(parts, {2, parts.size(0)});
  check(cuda::sum_parts(parts.size(0), parts.size(1), parts.const_data_ptr<double>(),
                        result.mutable_data_ptr<double>(), launch.stream()));
  return result;
}

inline void implement_programs(torch::stable::detail::StableLibrary& m) {
  m.impl("resident_losses", TORCH_BOX(&resident_losses));
  m.impl("resident_outputs", TORCH_BOX(&resident_outputs));
  m.impl("combine_terms", TORCH_BOX(&combine_terms));
  m.impl("output_losses_", TORCH_BOX(&output_losses_));
  m.impl("sum_parts", TORCH_BOX(&sum_parts));
}

}  // namespace pylandscape
