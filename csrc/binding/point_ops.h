// Loss, gradient and Hessian of a small network at many points on a GPU, as a tensor op. A plan
// (points/hessian_plan.h) crosses as the bytes of its hessian::Program on the CPU; everything else is
// on the device. Nothing here waits for the device.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>

#include "binding/cuda_launch.h"
#include "binding/direction_ops.h"
#include "binding/program_ops.h"
#include "common/hessian.h"
#include "cuda/hessians.h"

namespace pylandscape {

inline hessian::Program hessian_plan_of(const Tensor& bytes) {
  hessian::Program program;
  expect(bytes.is_cpu() && bytes.scalar_type() == ScalarType::Byte && bytes.is_contiguous() &&
             bytes.numel() == static_cast<int64_t>(sizeof(program)),
         "program: expected the ", sizeof(program), " bytes of a plan on the CPU, got shape ",
         shape_of(bytes));
  std::memcpy(&program, bytes.const_data_ptr(), sizeof(program));
  expect(program.magic == hessian::Program::kMagic && program.steps > 0 &&
             program.steps <= hessian::kMaxSteps && program.threads > 0,
         "program: expected a plan of this version");
  return program;
}

// Of points (g, n): losses (g,), gradients (g, n) and hessians (g, n, n), which are filled; of a plan
// without tangents, hessians is empty. list (list_size,), constants (source - n,), x (features,
// samples), targets (target_rows, samples).
inline void point_hessians_(const Tensor& program, const Tensor& list, const Tensor& constants,
                            const Tensor& x, const Tensor& targets, const Tensor& loss_weights,
                            const Tensor& points, double denominator, Tensor losses,
                            Tensor gradients, Tensor hessians) {
  hessian::Program p = hessian_plan_of(program);
  expect(points.scalar_type() == ScalarType::Double && points.dim() == 2 && points.size(1) == p.n &&
             points.is_contiguous(),
         "points: expected contiguous float64 of shape (g, ", p.n, "), got ", shape_of(points));
  const int64_t g = points.size(0), n = p.n;
  expect_tensor(list, "list", ScalarType::Int, p.list_size, points);
  expect_tensor(constants, "constants", ScalarType::Double, p.source - n, points);
  expect_tensor(x, "x", ScalarType::Double, int64_t{p.features} * p.samples, points);
  const LossTensors loss(p, targets, loss_weights, points);
  expect_tensor(losses, "losses", ScalarType::Double, g, points);
  expect_tensor(gradients, "gradients", ScalarType::Double, g * n, points);
  expect_tensor(hessians, "hessians", ScalarType::Double, p.tangents > 0 ? g * n * n : 0, points);
  const Launch launch(points);
  p.loss = loss.args;
  cuda::HessianArgs args{};
  args.list = list.const_data_ptr<int32_t>();
  args.constants = constants.const_data_ptr<double>();
  args.x = x.const_data_ptr<double>();
  args.index = loss.index, args.dense = loss.dense;
  args.points = points.const_data_ptr<double>();
  args.denominator = denominator;
  args.losses = losses.mutable_data_ptr<double>();
  args.gradients = gradients.mutable_data_ptr<double>();
  args.hessians = hessians.mutable_data_ptr<double>();
  args.g = g;
  check(cuda::point_hessians(p, args, launch.stream()));
}

inline void implement_points(torch::stable::detail::StableLibrary& m) {
  m.impl("point_hessians_", TORCH_BOX(&point_hessians_));
}

}  // namespace pylandscape
