// Tensor ops of the core through the LibTorch stable ABI: torch.ops.pylandscape.*, schemas and CPU.
// The CUDA twins are in cuda.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "binding/direction_ops.h"
#include "binding/pool.h"
#include "binding/schemas.h"
#include "cpu/directions.h"
#include "directions/directions.h"
#include "directions/parts.h"

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

// (chunks, 2) float64, as measure_part gives them; theta (m,): elements first .. of the whole.
Tensor direction_sums(const Tensor& theta, int64_t first, const Tensor& segments, int64_t seed,
                      int64_t stream) {
  check_theta(theta), check_dense(theta);
  const Tensor plan = host_segments(segments, first + theta.size(0));
  const int64_t count = plan.size(0), *edges = plan.const_data_ptr<int64_t>();
  expect(count == 0 || edges[0] >= first, "segments: expected elements from ", first, " on");
  Tensor sums = ts::new_empty(theta, {count_sums(edges, count), 2}, ScalarType::Double);
  const auto measure = [&](auto* data) {
    measure_part(data, first, edges, count, static_cast<uint64_t>(seed),
                 static_cast<uint64_t>(stream), sums.mutable_data_ptr<double>(), torch_pool());
  };
  if (theta.scalar_type() == ScalarType::Float) measure(theta.const_data_ptr<float>());
  else measure(theta.const_data_ptr<double>());
  return sums;
}

// What parts of directions have in common: out (m,) from element `first` of the whole on, theta
// (m,) where each element is multiplied by theta's, factors of the segments (count of them).
void check_part(const Tensor& out, int64_t first, const std::optional<Tensor>& theta,
                const std::optional<Tensor>& factors, int64_t count) {
  check_theta(out), check_dense(out);
  expect(first >= 0, "first: expected a number >= 0, got ", first);
  if (theta.has_value()) check_like(*theta, "theta", out), check_dense(*theta);
  if (!factors.has_value()) return;
  check_dense(*factors);
  expect(factors->numel() == count && factors->scalar_type() == out.scalar_type(),
         "factors: expected one for each segment, of out's dtype");
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<T>() : nullptr;
}

// out (m,): elements first .. of a direction.
Tensor direction_part(Tensor out, int64_t first, std::optional<Tensor> theta,
                      const Tensor& segments, std::optional<Tensor> factors, int64_t seed,
                      int64_t stream) {
  const Tensor plan = host_segments(segments, INT64_MAX);
  check_part(out, first, theta, factors, plan.size(0));
  const auto write = [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    const Named<T> named{plan.const_data_ptr<int64_t>(), data_or_null<T>(factors), plan.size(0),
                         theta.has_value(),              static_cast<uint64_t>(seed),
                         static_cast<uint64_t>(stream)};
    write_part(named, first, out.size(0), data_or_null<T>(theta), data, torch_pool());
  };
  if (out.scalar_type() == ScalarType::Float) write(out.mutable_data_ptr<float>());
  else write(out.mutable_data_ptr<double>());
  return out;
}

// out (m,) = base (m,) + sum_j coefficients[j] times elements first .. of direction j; base may be
// out. names (k, 2): seeds and streams; factors (k, s).
Tensor direction_sum(Tensor out, const Tensor& base, int64_t first, std::optional<Tensor> theta,
                     const Tensor& segments, std::optional<Tensor> factors, const Tensor& names,
                     const Tensor& coefficients) {
  const Tensor plan = host_segments(segments, INT64_MAX);
  expect(names.is_cpu() && names.scalar_type() == ScalarType::Long && names.dim() == 2 &&
             names.size(1) == 2,
         "names: expected an int64 tensor (k, 2) on the CPU, got shape ", shape_of(names));
  check_dense(names);
  const int64_t k = names.size(0), count = plan.size(0);
  check_part(out, first, theta, factors, k * count);
  check_like(base, "base", out), check_dense(base);
  expect(coefficients.numel() == k && coefficients.scalar_type() == ScalarType::Double,
         "coefficients: expected ", k, " in float64, got shape ", shape_of(coefficients));
  check_dense(coefficients);
  const auto write = [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    const double* given = coefficients.const_data_ptr<double>();
    const std::vector<T> c(given, given + k);
    const int64_t* name = names.const_data_ptr<int64_t>();
    const T* scales = data_or_null<T>(factors);
    std::vector<Named<T>> of;
    for (int64_t j = 0; j < k; ++j)
      of.push_back({plan.const_data_ptr<int64_t>(),
                    scales == nullptr ? nullptr : scales + j * count, count, theta.has_value(),
                    static_cast<uint64_t>(name[2 * j]), static_cast<uint64_t>(name[2 * j + 1])});
    write_sum(of, c.data(), first, out.size(0), data_or_null<T>(theta), base.const_data_ptr<T>(),
              data, torch_pool());
  };
  if (out.scalar_type() == ScalarType::Float) write(out.mutable_data_ptr<float>());
  else write(out.mutable_data_ptr<double>());
  return out;
}

struct Meta {
  static constexpr bool kHasData = false;
};

}  // namespace
}  // namespace pylandscape

STABLE_TORCH_LIBRARY(pylandscape, m) { pylandscape::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  pylandscape::implement<pylandscape::Cpu>(m);
  m.impl("direction_sums", TORCH_BOX(&pylandscape::direction_sums));
  m.impl("direction_part_", TORCH_BOX(&pylandscape::direction_part));
  m.impl("direction_sum_", TORCH_BOX(&pylandscape::direction_sum));
}
STABLE_TORCH_LIBRARY_IMPL(pylandscape, Meta, m) { pylandscape::implement<pylandscape::Meta>(m); }
