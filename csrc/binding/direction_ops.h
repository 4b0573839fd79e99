// The direction ops without their devices: checks, dtypes, both overloads, registration. A Device
// brings make<T>(out, direction or null, theta, segments, mode, seed, stream), gaussian(seed,
// stream, first, out) and perturb<T>(theta, coefficients, directions, out), which get checked,
// contiguous tensors; or kHasData = false and nothing else, for shapes alone.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "directions/segments.h"

namespace pylandscape {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws the parts, one after the other, unless the condition holds. (STD_TORCH_CHECK would put the
// source file's path before the message.)
template <typename... Parts>
void expect(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

inline std::string shape_of(const Tensor& x) {
  std::string text = "(";
  for (int64_t i = 0; i < x.dim(); ++i) text += std::to_string(x.size(i)) + ", ";
  if (x.dim() > 1) text.pop_back(), text.pop_back();
  if (x.dim() == 1) text.pop_back();
  return text + ")";
}

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// theta (n,) float32 or float64.
inline void check_theta(const Tensor& theta) {
  expect(theta.dim() == 1, "theta: expected shape (n,), got ", shape_of(theta));
  expect(theta.scalar_type() == ScalarType::Float || theta.scalar_type() == ScalarType::Double,
         "theta: expected float32 or float64");
}

// x (n,): theta's shape, dtype and device.
inline void check_like(const Tensor& x, const char* name, const Tensor& theta) {
  expect(x.dim() == 1 && x.size(0) == theta.size(0), name, ": expected theta's shape ",
         shape_of(theta), ", got ", shape_of(x));
  expect(x.scalar_type() == theta.scalar_type(), name, ": expected theta's dtype");
  expect(x.device() == theta.device(), name, ": expected theta's device");
}

inline void check_dense(const Tensor& out) {
  expect(out.is_contiguous(), "out: expected a contiguous tensor, got shape ", shape_of(out));
}

// segments (s, 2) int64 in host memory, on every device: they are the plan, not the data.
inline Tensor host_segments(const Tensor& segments, int64_t n) {
  expect(segments.is_cpu() && segments.scalar_type() == ScalarType::Long && segments.dim() == 2 &&
             segments.size(1) == 2,
         "segments: expected an int64 tensor (s, 2) on the CPU, got shape ", shape_of(segments));
  Tensor host = dense(segments);
  check_segments(n, host.const_data_ptr<int64_t>(), host.size(0));
  return host;
}

inline void check_draw(int64_t first, const Tensor& out) {
  expect(out.dim() == 1 && out.scalar_type() == ScalarType::Float,
         "out: expected a float32 vector, got shape ", shape_of(out));
  check_dense(out);
  expect(first >= 0, "first: expected a number >= 0, got ", first);
}

inline void check_coefficients(const Tensor& coefficients, const Tensor& directions) {
  expect(directions.dim() == 2, "directions: expected shape (k, n), got ", shape_of(directions));
  expect(coefficients.dim() == 2 && coefficients.size(1) == directions.size(0),
         "coefficients: expected shape (g, ", directions.size(0), "), got ",
         shape_of(coefficients));
  expect(coefficients.scalar_type() == ScalarType::Double, "coefficients: expected float64");
}

// theta (n,), coefficients (g, k) float64 on the CPU or beside theta, directions (k, n), out (g, n).
inline void check_perturb(const Tensor& theta, const Tensor& coefficients,
                          const Tensor& directions, const Tensor& out) {
  check_theta(theta), check_coefficients(coefficients, directions);
  const int64_t n = theta.size(0);
  expect(directions.size(1) == n, "directions: expected shape (k, ", n, "), got ",
         shape_of(directions));
  expect(out.dim() == 2 && out.size(0) == coefficients.size(0) && out.size(1) == n,
         "out: expected shape (", coefficients.size(0), ", ", n, "), got ", shape_of(out));
  check_dense(out);
  for (const Tensor* x : {&directions, &out}) {
    const char* name = x == &out ? "out" : "directions";
    expect(x->scalar_type() == theta.scalar_type(), name, ": expected theta's dtype");
    expect(x->device() == theta.device(), name, ": expected theta's device");
  }
}

template <typename Device>
Tensor random_direction_out(const Tensor& theta, const Tensor& segments, std::string mode,
                            int64_t seed, int64_t stream, Tensor out) {
  check_theta(theta), check_like(out, "out", theta), check_dense(out);
  const Mode parsed = parse_mode(mode);
  if constexpr (Device::kHasData) {
    const Tensor plan = host_segments(segments, theta.size(0));
    const auto make = theta.scalar_type() == ScalarType::Float ? &Device::template make<float>
                                                               : &Device::template make<double>;
    make(out, nullptr, dense(theta), plan, parsed, seed, stream);
  }
  return out;
}

template <typename Device>
Tensor normalize_direction_out(const Tensor& direction, const Tensor& theta,
                               const Tensor& segments, std::string mode, Tensor out) {
  check_theta(theta), check_like(direction, "direction", theta);
  check_like(out, "out", theta), check_dense(out);
  const Mode parsed = parse_mode(mode);
  if constexpr (Device::kHasData) {
    const Tensor plan = host_segments(segments, theta.size(0)), given = dense(direction);
    const auto make = theta.scalar_type() == ScalarType::Float ? &Device::template make<float>
                                                               : &Device::template make<double>;
    make(out, &given, dense(theta), plan, parsed, 0, 0);
  }
  return out;
}

// Numbers first .. first + n - 1 of stream (seed, stream) in out (n,) float32.
template <typename Device>
Tensor gaussian_out(int64_t seed, int64_t stream, int64_t first, Tensor out) {
  check_draw(first, out);
  if constexpr (Device::kHasData)
    Device::gaussian(static_cast<uint64_t>(seed), static_cast<uint64_t>(stream), first, out);
  return out;
}

template <typename Device>
Tensor perturb_out(const Tensor& theta, const Tensor& coefficients, const Tensor& directions,
                   Tensor out) {
  check_perturb(theta, coefficients, directions, out);
  if constexpr (Device::kHasData) {
    expect(coefficients.is_cpu() || coefficients.device() == theta.device(),
           "coefficients: expected a tensor on the CPU or on theta's device");
    const auto perturb = theta.scalar_type() == ScalarType::Float
                             ? &Device::template perturb<float>
                             : &Device::template perturb<double>;
    perturb(dense(theta), dense(coefficients), dense(directions), out);
  }
  return out;
}

// The overloads that allocate.
template <typename Device>
Tensor random_direction(const Tensor& theta, const Tensor& segments, std::string mode,
                        int64_t seed, int64_t stream) {
  check_theta(theta);
  const Tensor out = torch::stable::new_empty(theta, {theta.size(0)});
  return random_direction_out<Device>(theta, segments, mode, seed, stream, out);
}

template <typename Device>
Tensor normalize_direction(const Tensor& direction, const Tensor& theta, const Tensor& segments,
                           std::string mode) {
  check_theta(theta);
  const Tensor out = torch::stable::new_empty(theta, {theta.size(0)});
  return normalize_direction_out<Device>(direction, theta, segments, mode, out);
}

template <typename Device>
Tensor perturb(const Tensor& theta, const Tensor& coefficients, const Tensor& directions) {
  check_theta(theta), check_coefficients(coefficients, directions);
  const Tensor out =
      torch::stable::new_empty(theta, {coefficients.size(0), theta.size(0)});
  return perturb_out<Device>(theta, coefficients, directions, out);
}

// Registers all of them for a dispatch key.
template <typename Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("random_direction", TORCH_BOX(&random_direction<Device>));
  m.impl("random_direction.out", TORCH_BOX(&random_direction_out<Device>));
  m.impl("normalize_direction", TORCH_BOX(&normalize_direction<Device>));
  m.impl("normalize_direction.out", TORCH_BOX(&normalize_direction_out<Device>));
  m.impl("gaussian.out", TORCH_BOX(&gaussian_out<Device>));
  m.impl("perturb", TORCH_BOX(&perturb<Device>));
  m.impl("perturb.out", TORCH_BOX(&perturb_out<Device>));
}

}  // namespace pylandscape
