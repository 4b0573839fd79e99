// Tensor ops of the core through the LibTorch stable ABI: torch.ops.pylandscape.*. A device
// implements the overloads with out=; the ones that allocate are written once, on top of them. The
// CUDA twins are in cuda.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "binding/direction_ops.h"
#include "binding/pool.h"
#include "cpu/directions.h"
#include "program/directions.h"

namespace pylandscape {
namespace {

namespace ts = torch::stable;

struct Cpu {
  template <typename T>
  static void make(Tensor& out, const Tensor* direction, const Tensor& theta,
                   const Tensor& segments, Mode mode, int64_t seed, int64_t stream) {
    DirectionArgs<T> args{};
    args.n = out.size(0);
    args.out = out.mutable_data_ptr<T>();
    args.direction = direction != nullptr ? direction->const_data_ptr<T>() : nullptr;
    args.theta = theta.const_data_ptr<T>();
    args.segments = segments.const_data_ptr<int64_t>();
    args.count = segments.size(0);
    args.mode = mode;
    args.seed = static_cast<uint64_t>(seed), args.stream = static_cast<uint64_t>(stream);
    make_direction(args, torch_pool());
  }

  template <typename T>
  static void perturb(const Tensor& theta, const Tensor& coefficients, const Tensor& directions,
                      Tensor& out) {
    const double* given = coefficients.const_data_ptr<double>();
    const std::vector<T> c(given, given + coefficients.numel());
    const T* base = theta.const_data_ptr<T>();
    const T* d = directions.const_data_ptr<T>();
    T* points = out.mutable_data_ptr<T>();
    const int64_t g = out.size(0), n = out.size(1), k = directions.size(0);
    // Blocks of elements whose directions stay in the cache from point to point.
    constexpr int64_t kBlock = 4096;
    ts::parallel_for(0, (n + kBlock - 1) / kBlock, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first * kBlock; b < last * kBlock; b += kBlock)
        for (int64_t point = 0; point < g; ++point)
          cpu::direction_kernels<T>().perturb(std::min(kBlock, n - b), k, n, base + b,
                                              c.data() + point * k, d + b,
                                              points + point * n + b);
    });
  }
};

// Numbers first .. first + n - 1 of stream (seed, stream) in out (n,).
Tensor gaussian_out(int64_t seed, int64_t stream, int64_t first, Tensor out) {
  check_draw(first, out);
  float* data = out.mutable_data_ptr<float>();
  ts::parallel_for(0, out.size(0), 1 << 15, [&](int64_t begin, int64_t end) {
    cpu::direction_kernels<float>().draw(static_cast<uint64_t>(seed),
                                         static_cast<uint64_t>(stream), first + begin, end - begin,
                                         data + begin, nullptr);
  });
  return out;
}

// Shapes alone, for fake tensors.
Tensor random_direction_meta(const Tensor& theta, const Tensor&, std::string mode, int64_t, int64_t,
                             Tensor out) {
  check_theta(theta), check_like(out, "out", theta), parse_mode(mode);
  return out;
}

Tensor normalize_direction_meta(const Tensor& direction, const Tensor& theta, const Tensor&,
                                std::string mode, Tensor out) {
  check_theta(theta), check_like(direction, "direction", theta);
  check_like(out, "out", theta), parse_mode(mode);
  return out;
}

Tensor gaussian_meta(int64_t, int64_t, int64_t first, Tensor out) {
  check_draw(first, out);
  return out;
}

Tensor perturb_meta(const Tensor& theta, const Tensor& coefficients, const Tensor& directions,
                    Tensor out) {
  check_perturb(theta, coefficients, directions, out);
  return out;
}

// Calls the out= overload of the tensors' device.
template <typename... Args>
Tensor dispatch_out(const char* op, const Args&... args) {
  StableIValue stack[] = {torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "out", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor random_direction(const Tensor& theta, const Tensor& segments, std::string mode,
                        int64_t seed, int64_t stream) {
  check_theta(theta);
  const Tensor out = ts::new_empty(theta, {theta.size(0)});
  return dispatch_out("pylandscape::random_direction", theta, segments, mode, seed, stream, out);
}

Tensor normalize_direction(const Tensor& direction, const Tensor& theta, const Tensor& segments,
                           std::string mode) {
  check_theta(theta);
  const Tensor out = ts::new_empty(theta, {theta.size(0)});
  return dispatch_out("pylandscape::normalize_direction", direction, theta, segments, mode, out);
}

Tensor perturb(const Tensor& theta, const Tensor& coefficients, const Tensor& directions) {
  check_theta(theta), check_coefficients(coefficients, directions);
  const Tensor out = ts::new_empty(theta, {coefficients.size(0), theta.size(0)});
  return dispatch_out("pylandscape::perturb", theta, coefficients, directions, out);
}

}  // namespace
}  // namespace pylandscape

STABLE_TORCH_LIBRARY(pylandscape, m) {
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
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  using namespace pylandscape;
  m.impl("random_direction.out", TORCH_BOX(&random_direction_out<Cpu>));
  m.impl("normalize_direction.out", TORCH_BOX(&normalize_direction_out<Cpu>));
  m.impl("gaussian.out", TORCH_BOX(&gaussian_out));
  m.impl("perturb.out", TORCH_BOX(&perturb_out<Cpu>));
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, Meta, m) {
  m.impl("random_direction.out", TORCH_BOX(&pylandscape::random_direction_meta));
  m.impl("normalize_direction.out", TORCH_BOX(&pylandscape::normalize_direction_meta));
  m.impl("gaussian.out", TORCH_BOX(&pylandscape::gaussian_meta));
  m.impl("perturb.out", TORCH_BOX(&pylandscape::perturb_meta));
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CompositeExplicitAutograd, m) {
  m.impl("random_direction", TORCH_BOX(&pylandscape::random_direction));
  m.impl("normalize_direction", TORCH_BOX(&pylandscape::normalize_direction));
  m.impl("perturb", TORCH_BOX(&pylandscape::perturb));
}
