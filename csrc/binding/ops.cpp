// Stateless tensor ops through the LibTorch stable ABI: torch.ops.pylandscape.*. The CUDA twins of
// the same schemas are in cuda.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "binding/pool.h"
#include "cpu/draw.h"
#include "program/directions.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace pylandscape {
namespace {

void check_vector(const Tensor& x, const char* name, int64_t n, ScalarType dtype) {
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == n, name, ": expected shape (", n, ",)");
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, ": expected the dtype of out");
  STD_TORCH_CHECK(x.is_contiguous(), name, ": expected a contiguous vector");
}

template <typename T>
void run(Tensor& out, const Tensor* direction, const Tensor& theta, const Tensor& segments,
         int64_t target, bool joint, int64_t seed, int64_t stream) {
  DirectionArgs<T> args{};
  args.n = out.size(0);
  args.out = out.mutable_data_ptr<T>();
  args.direction = direction != nullptr ? direction->const_data_ptr<T>() : nullptr;
  args.theta = theta.const_data_ptr<T>();
  args.segments = segments.const_data_ptr<int64_t>();
  args.count = segments.size(0);
  args.target = static_cast<Target>(target);
  args.joint = joint;
  args.seed = static_cast<uint64_t>(seed), args.stream = static_cast<uint64_t>(stream);
  make_direction(args, torch_pool());
}

void direction_op(Tensor& out, const Tensor* direction, const Tensor& theta,
                  const Tensor& segments, int64_t target, bool joint, int64_t seed,
                  int64_t stream) {
  const ScalarType dtype = out.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "out: expected float32 or float64");
  STD_TORCH_CHECK(out.dim() == 1, "out: expected a vector");
  check_vector(out, "out", out.size(0), dtype);
  check_vector(theta, "theta", out.size(0), dtype);
  if (direction != nullptr) check_vector(*direction, "direction", out.size(0), dtype);
  STD_TORCH_CHECK(segments.dim() == 2 && segments.size(1) == 2 && segments.is_contiguous() &&
                      segments.scalar_type() == ScalarType::Long,
                  "segments: expected a contiguous int64 tensor of shape (s, 2)");
  STD_TORCH_CHECK(target >= 0 && target <= 3, "target: expected 0 .. 3, got ", target);
  if (dtype == ScalarType::Float)
    run<float>(out, direction, theta, segments, target, joint, seed, stream);
  else
    run<double>(out, direction, theta, segments, target, joint, seed, stream);
}

void random_direction_cpu(Tensor out, const Tensor& theta, const Tensor& segments, int64_t target,
                          bool joint, int64_t seed, int64_t stream) {
  direction_op(out, nullptr, theta, segments, target, joint, seed, stream);
}

void normalize_direction_cpu(Tensor out, const Tensor& direction, const Tensor& theta,
                             const Tensor& segments, int64_t target, bool joint) {
  direction_op(out, &direction, theta, segments, target, joint, 0, 0);
}

// Numbers first .. first + out.size(0) of stream (seed, stream).
void gaussian_cpu(Tensor out, int64_t seed, int64_t stream, int64_t first) {
  STD_TORCH_CHECK(out.dim() == 1 && out.is_contiguous() && out.scalar_type() == ScalarType::Float,
                  "out: expected a contiguous float32 vector");
  STD_TORCH_CHECK(first >= 0, "first: expected a number >= 0, got ", first);
  float* data = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, out.size(0), 1 << 15, [&](int64_t begin, int64_t end) {
    cpu::draw_kernels().gaussian(static_cast<uint64_t>(seed), static_cast<uint64_t>(stream),
                                 first + begin, end - begin, data + begin);
  });
}

}  // namespace
}  // namespace pylandscape

STABLE_TORCH_LIBRARY(pylandscape, m) {
  m.def("random_direction_(Tensor(a!) out, Tensor theta, Tensor segments, int target, bool joint, "
        "int seed, int stream) -> ()");
  m.def("normalize_direction_(Tensor(a!) out, Tensor direction, Tensor theta, Tensor segments, "
        "int target, bool joint) -> ()");
  m.def("gaussian_(Tensor(a!) out, int seed, int stream, int first) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("random_direction_", TORCH_BOX(&pylandscape::random_direction_cpu));
  m.impl("normalize_direction_", TORCH_BOX(&pylandscape::normalize_direction_cpu));
  m.impl("gaussian_", TORCH_BOX(&pylandscape::gaussian_cpu));
}
