// Derivatives of softmax and of layer and group norm (products.h): a warp takes one group of one
// row, its lanes the features in turn. Sums in double, by the warp's tree.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/products.h"

namespace pylandscape::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kMost = 1 << 20;  // blocks; each then takes several groups a warp

__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// f(group) for the groups of this warp.
template <typename F>
__device__ void each_group(int64_t groups, F f) {
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t g = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; g < groups; g += step) f(g);
}

unsigned blocks(int64_t groups) {
  return static_cast<unsigned>(std::min<int64_t>(kMost, (groups + kWarps - 1) / kWarps));
}

// y = softmax(x), or log_softmax with p = exp(y).
//   ry = y (rx - <y rx>)             log: ry = rx - <p rx>
//   dx = y (dy - <y dy>)             log: dx = dy - p <1 dy>
// <.> is the sum over the classes.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    softmax_groups(const __grid_constant__ SoftmaxSlopeArgs<T> a) {
  const int64_t size = a.shape.size, inner = a.shape.inner, each = a.shape.outer * inner;
  const int64_t features = each * size;
  const int lane = threadIdx.x % kWarp;
  const bool log = a.shape.log;
  each_group(a.g * a.rows * each, [&](int64_t group) {
    const int64_t line = group / each, o = group % each;
    const int64_t first = o / inner * size * inner + o % inner;
    const int64_t shared = line % a.rows * features + first, own = line * features + first;
    const auto p = [&](int64_t f) {
      const double y = double(a.y[shared + f * inner]);
      return log ? exp(y) : y;
    };
    double sum = 0, rsum = 0;  // of `in`; second: <y dy> and its tangent; log: <1 dy> and its
    for (int64_t f = lane; f < size; f += kWarp) {
      const double in = double(a.in[own + f * inner]);
      if (a.dy == nullptr) {
        sum += a.tangent || !log ? p(f) * in : in;
        continue;
      }
      const double d = double(a.dy[shared + f * inner]), r = double(a.ry[own + f * inner]);
      sum += log ? d : d * p(f);
      rsum += log ? in : in * p(f) + d * r;
    }
    sum = warp_sum(sum);
    if (a.dy != nullptr) rsum = warp_sum(rsum);
    for (int64_t f = lane; f < size; f += kWarp) {
      const int64_t at = own + f * inner;
      const double in = double(a.in[at]), y = p(f);
      double value;
      if (a.dy == nullptr) {
        value = !log ? y * (in - sum) : a.tangent ? in - sum : in - y * sum;
      } else {
        const double d = double(a.dy[shared + f * inner]), r = double(a.ry[at]);
        value = log ? in - y * r * sum - y * rsum : r * (d - sum) + y * (in - rsum);
      }
      a.out[at] = static_cast<T>(value);
    }
  });
}

// z = (x - mean) s with s = 1 / sqrt(variance + eps); y = gain z + shift.
// Along v: rz = s (rx - <rx> - z <z rx>) and rs = -s^2 <z rx>; <.> is the mean over the group.
// Backward, with g = gain dy: dx = s u, u = g - <g> - z <g z>; then
// rdx = rs u + s (rg - <rg> - rz <g z> - z (<rg z> + <g rz>)), rg = rgain dy + gain rdy.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    norm_groups(const __grid_constant__ NormSlopeArgs<T> a) {
  const int64_t outer = a.shape.outer, size = a.shape.size, width = size / a.shape.pixels;
  const int64_t features = outer * size;
  const double share = 1.0 / double(size);
  const int lane = threadIdx.x % kWarp;
  each_group(a.g * a.rows * outer, [&](int64_t group) {
    const int64_t line = group / outer, o = group % outer;
    const int64_t shared = line % a.rows * features, own = line * features;
    const T* rgain = a.rgain != nullptr ? a.rgain + line / a.rows * a.gain_step : nullptr;
    const T* rshift = a.rshift != nullptr ? a.rshift + line / a.rows * a.gain_step : nullptr;
    const auto row = [&](int64_t f) { return (f / width * outer + o) * width + f % width; };
    const auto at_gain = [&](int64_t f) { return (a.shape.channels ? o * width : 0) + f % width; };
    const auto mean_of = [&](auto term) {
      double sum = 0;
      for (int64_t f = lane; f < size; f += kWarp) sum += term(f);
      return warp_sum(sum) * share;
    };
    const auto of = [](const T* p, int64_t at) { return p != nullptr ? double(p[at]) : 0.0; };
    const auto gained = [&](int64_t f, double d) {
      return a.gain != nullptr ? d * double(a.gain[at_gain(f)]) : d;
    };
    const double mean = mean_of([&](int64_t f) { return double(a.x[shared + row(f)]); });
    const double variance = mean_of([&](int64_t f) {
      const double d = double(a.x[shared + row(f)]) - mean;
      return d * d;
    });
    const double scale = 1.0 / sqrt(variance + a.shape.eps);
    const auto z = [&](int64_t f) { return (double(a.x[shared + row(f)]) - mean) * scale; };
    if (a.pass == NormPass::kTangent) {
      const auto r = [&](int64_t f) { return of(a.in, own + row(f)); };
      const double r_mean = mean_of(r), z_r = mean_of([&](int64_t f) { return r(f) * z(f); });
      for (int64_t f = lane; f < size; f += kWarp) {
        double v = gained(f, scale * (r(f) - r_mean - z(f) * z_r));
        if (rgain != nullptr) v += double(rgain[at_gain(f)]) * z(f);
        if (rshift != nullptr) v += double(rshift[at_gain(f)]);
        a.out[own + row(f)] = static_cast<T>(v);
      }
      return;
    }
    const auto in = [&](int64_t f) { return double(a.in[own + row(f)]); };
    if (a.pass == NormPass::kReverse) {
      const auto g = [&](int64_t f) { return gained(f, in(f)); };
      const double g_mean = mean_of(g), g_z = mean_of([&](int64_t f) { return g(f) * z(f); });
      for (int64_t f = lane; f < size; f += kWarp) {
        if (a.terms != nullptr) a.terms[own + row(f)] = static_cast<T>(in(f) * z(f));
        if (a.out != nullptr)
          a.out[own + row(f)] = static_cast<T>(scale * (g(f) - g_mean - z(f) * g_z));
      }
      return;
    }
    const auto rx = [&](int64_t f) { return of(a.rx, own + row(f)); };
    const auto dy = [&](int64_t f) { return double(a.dy[shared + row(f)]); };
    const double rx_mean = mean_of(rx), z_rx = mean_of([&](int64_t f) { return rx(f) * z(f); });
    const auto rz = [&](int64_t f) { return scale * (rx(f) - rx_mean - z(f) * z_rx); };
    const auto g = [&](int64_t f) { return gained(f, dy(f)); };
    const auto rg = [&](int64_t f) {
      const double v = gained(f, in(f));
      return rgain != nullptr ? v + double(rgain[at_gain(f)]) * dy(f) : v;
    };
    const double g_mean = mean_of(g), g_z = mean_of([&](int64_t f) { return g(f) * z(f); });
    const double rg_mean = mean_of(rg);
    const double cross = mean_of([&](int64_t f) { return rg(f) * z(f) + g(f) * rz(f); });
    const double rs = -scale * scale * z_rx;
    for (int64_t f = lane; f < size; f += kWarp) {
      if (a.terms != nullptr)
        a.terms[own + row(f)] = static_cast<T>(in(f) * z(f) + dy(f) * rz(f));
      if (a.out == nullptr) continue;
      const double u = g(f) - g_mean - z(f) * g_z;
      const double v = rg(f) - rg_mean - rz(f) * g_z - z(f) * cross;
      a.out[own + row(f)] = static_cast<T>(rs * u + scale * v);
    }
  });
}

}  // namespace

template <typename T>
cudaError_t softmax_slopes(const SoftmaxSlopeArgs<T>& args, cudaStream_t stream) {
  const int64_t groups = args.g * args.rows * args.shape.outer * args.shape.inner;
  if (groups * args.shape.size == 0) return cudaSuccess;
  launch(&softmax_groups<T>, blocks(groups), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t norm_slopes(const NormSlopeArgs<T>& args, cudaStream_t stream) {
  const int64_t groups = args.g * args.rows * args.shape.outer;
  if (groups * args.shape.size == 0) return cudaSuccess;
  launch(&norm_groups<T>, blocks(groups), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t softmax_slopes(const SoftmaxSlopeArgs<float>&, cudaStream_t);
template cudaError_t softmax_slopes(const SoftmaxSlopeArgs<double>&, cudaStream_t);
template cudaError_t norm_slopes(const NormSlopeArgs<float>&, cudaStream_t);
template cudaError_t norm_slopes(const NormSlopeArgs<double>&, cudaStream_t);

}  // namespace pylandscape::cuda
