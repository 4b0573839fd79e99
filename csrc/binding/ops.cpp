// Tensor ops of the core through the LibTorch stable ABI: torch.ops.pylandscape.*, schemas and CPU.
// The CUDA twins are in cuda.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "binding/direction_ops.h"
#include "binding/pool.h"
#include "binding/schemas.h"
#include "cpu/directions.h"
#include "directions/directions.h"

namespace pylandscape {
namespace {

namespace ts = torch::stable;

struct Cpu {
  static constexpr bool kHasData = true;

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

  static void gaussian(uint64_t seed, uint64_t stream, int64_t first, Tensor& out) {
    float* data = out.mutable_data_ptr<float>();
    ts::parallel_for(0, out.size(0), 1 << 15, [&](int64_t begin, int64_t end) {
      cpu::direction_kernels<float>().draw(seed, stream, first + begin, end - begin, data + begin,
                                           nullptr);
    });
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

struct Meta {
  static constexpr bool kHasData = false;
};

}  // namespace
}  // namespace pylandscape

STABLE_TORCH_LIBRARY(pylandscape, m) { pylandscape::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) { pylandscape::implement<pylandscape::Cpu>(m); }
STABLE_TORCH_LIBRARY_IMPL(pylandscape, Meta, m) { pylandscape::implement<pylandscape::Meta>(m); }
