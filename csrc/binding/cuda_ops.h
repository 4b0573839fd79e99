// The CUDA twins of the ops in ops.cpp.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "binding/cuda_launch.h"
#include "binding/direction_ops.h"
#include "cuda/directions.h"

namespace pylandscape {

struct Cuda {
  static constexpr bool kHasData = true;

  template <typename T>
  static void make(Tensor& out, const Tensor* direction, const Tensor& theta,
                   const Tensor& segments, Mode mode, int64_t seed, int64_t stream) {
    const Launch launch(out);
    const cuda::Plan plan(out.size(0), segments.const_data_ptr<int64_t>(), segments.size(0), mode);
    const Tensor ranges = launch.upload(out, plan.ranges.data(), plan.ranges.size());
    Tensor work = torch::stable::new_empty(
        out, {2 * plan.count(cuda::Plan::kChunk) + plan.count(cuda::Plan::kOwner)},
        ScalarType::Double);
    cuda::DirectionArgs<T> args{};
    args.out = out.mutable_data_ptr<T>();
    args.direction = direction != nullptr ? direction->const_data_ptr<T>() : nullptr;
    args.theta = theta.const_data_ptr<T>();
    args.mode = mode;
    args.seed = static_cast<uint64_t>(seed), args.stream = static_cast<uint64_t>(stream);
    check(cuda::make_direction(args, plan,
                               static_cast<const cuda::Range*>(ranges.const_data_ptr()),
                               work.mutable_data_ptr<double>(), launch.stream()));
  }

  static void gaussian(uint64_t seed, uint64_t stream, int64_t first, Tensor& out) {
    const Launch launch(out);
    check(cuda::gaussian(seed, stream, first, out.size(0), out.mutable_data_ptr<float>(),
                         launch.stream()));
  }

  template <typename T>
  static void perturb(const Tensor& theta, const Tensor& coefficients, const Tensor& directions,
                      Tensor& out) {
    const Launch launch(out);
    const Tensor device =
        coefficients.device() == out.device()
            ? coefficients
            : launch.upload(out, coefficients.const_data_ptr<double>(), coefficients.numel());
    check(cuda::perturb(out.size(0), directions.size(0), out.size(1), theta.const_data_ptr<T>(),
                        static_cast<const double*>(device.const_data_ptr()),
                        directions.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                        launch.stream()));
  }
};

}  // namespace pylandscape
