// Derivatives on a GPU, as tensor ops: what stands between products, torch's or those of
// product_ops.h. Optional tensors are empty where they are not there. Nothing here waits for the
// device.
#pragma once
#include "binding/product_ops.h"

namespace pylandscape {

// x (g, rows, columns) += bias (g, columns), if given; gives first x + curved r.
inline Tensor bend_(Tensor x, const Tensor& bias, const Tensor& first, bool positive,
                    const Tensor& curved, const Tensor& r) {
  expect(x.dim() == 3 && x.is_contiguous() && x.size(0) <= 65535,
         "x: expected a contiguous (g, rows, columns), g at most 65535, got ",
         shape_of(x));
  const int64_t g = x.size(0), rows = x.size(1), columns = x.size(2);
  expect_bend(first, curved, r, rows * columns, g, x);
  return with_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(x);
    Tensor bent = torch::stable::new_empty(x, {g, rows, columns});
    cuda::BendArgs<T> args{};
    args.g = g, args.rows = rows, args.columns = columns;
    args.x = x.template mutable_data_ptr<T>(), args.bent = bent.template mutable_data_ptr<T>();
    args.bias_step = bias_step(bias, g, columns, x), args.bias = pointer<T>(bias);
    args.bend = bend_of<T>(first, positive, curved, r);
    check(cuda::bend(args, launch.stream()));
    return bent;
  });
}

// Of y = f(x) with adjoint dy: f'(x), f''(x) dy, f'(x) dy.
inline std::tuple<Tensor, Tensor, Tensor> unary_slopes(const Tensor& x, const Tensor& dy,
                                                       int64_t function, double a, double b) {
  expect_beside(x, "x", x.numel(), x);
  expect_beside(dy, "dy", x.numel(), x);
  const cpu::Unary f = unary_of(function);
  return with_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(x);
    Tensor first = torch::stable::empty_like(x), curved = torch::stable::empty_like(x);
    Tensor dx = torch::stable::empty_like(x);
    const cuda::SlopeArgs<T> args{x.numel(),
                                  pointer<T>(x),
                                  pointer<T>(dy),
                                  f,
                                  a,
                                  b,
                                  first.template mutable_data_ptr<T>(),
                                  curved.template mutable_data_ptr<T>(),
                                  dx.template mutable_data_ptr<T>()};
    check(cuda::unary_slopes(args, launch.stream()));
    return std::make_tuple(first, curved, dx);
  });
}

// (g, rows, columns): element i is the sum of x (g, rows, width) at list[start[i]] ...
// list[start[i + 1] - 1]; start (columns + 1,) and list are int32, taken as given.
inline Tensor scatter_sums(const Tensor& x, const Tensor& start, const Tensor& list) {
  expect(x.dim() == 3 && x.is_contiguous(), "x: expected a contiguous (g, rows, width), got ",
         shape_of(x));
  expect_tensor(start, "start", ScalarType::Int, start.numel(), x);
  expect_tensor(list, "list", ScalarType::Int, list.numel(), x);
  expect(start.numel() > 0, "start: expected one more than there are columns");
  return with_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(x);
    const int64_t columns = start.numel() - 1;
    Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), columns});
    const cuda::ScatterArgs<T> args{
        x.size(0) * x.size(1),         columns, x.size(2), pointer<T>(x), pointer<int32_t>(start),
        pointer<int32_t>(list), out.template mutable_data_ptr<T>()};
    check(cuda::scatter_sums(args, launch.stream()));
    return out;
  });
}

// Derivatives of the loss in outputs (1, rows, features) of the samples from `first` on, of which
// `count` weigh something: without tangents the gradient; of tangents (g, rows, features) the
// Hessian times each, or, with slopes (1, rows, features), slopes (slopes . tangent).
inline Tensor loss_slopes(const Tensor& program, const Tensor& outputs, int64_t first,
                          int64_t count, const Tensor& targets, const Tensor& loss_weights,
                          const Tensor& slopes, const Tensor& tangents) {
  const resident::Program p = plan_of(program);
  const LossTensors loss(p, targets, loss_weights, outputs);
  expect(outputs.dim() == 3 && outputs.is_contiguous() && outputs.size(2) == p.features,
         "outputs: expected a contiguous (1, rows, ", p.features, "), got ", shape_of(outputs));
  const int64_t rows = outputs.size(1), all = rows * p.features;
  expect_beside(outputs, "outputs", all, outputs);
  expect(first >= 0 && count >= 0 && count <= rows && first + count <= p.samples,
         "first, count: expected a range of the samples, got ", first, " and ", count);
  const int64_t g = given(tangents) ? tangents.numel() / std::max<int64_t>(1, all) : 1;
  expect(g <= 65535, "tangents: expected at most 65535, got ", g);
  expect_beside(slopes, "slopes", all, outputs, true);
  expect_beside(tangents, "tangents", g * all, outputs, true);
  return with_dtype(outputs, "outputs", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(outputs);
    Tensor out = torch::stable::new_empty(outputs, {g, rows, p.features});
    cuda::LossSlopeArgs<T> args{};
    args.g = g, args.first = first, args.count = count, args.rows = rows;
    args.samples = p.samples, args.features = p.features;
    args.loss = loss.args, args.index = loss.index, args.dense = loss.dense;
    args.outputs = pointer<T>(outputs), args.slopes = pointer<T>(slopes);
    args.tangents = pointer<T>(tangents), args.out = out.template mutable_data_ptr<T>();
    check(cuda::loss_slopes(args, launch.stream()));
    return out;
  });
}

// Softmax over the middle of (outer, size, inner), as cuda::SoftmaxSlopeArgs: y (1, rows, .), in
// (g, rows, .), dy (1, rows, .), ry (g, rows, .).
inline Tensor softmax_slopes(const Tensor& y, const Tensor& in, const Tensor& dy, const Tensor& ry,
                             bool log, bool tangent, int64_t outer, int64_t size, int64_t inner) {
  const int64_t features = outer * size * inner;
  expect(in.dim() == 3 && in.is_contiguous() && in.size(2) == features && size > 0,
         "in: expected a contiguous (g, rows, ", features, "), got ", shape_of(in));
  const int64_t all = in.size(1) * features;
  expect_beside(y, "y", all, in);
  expect_beside(dy, "dy", all, in, true);
  expect_beside(ry, "ry", in.numel(), in, true);
  expect(given(dy) == given(ry), "dy, ry: expected both or neither");
  return with_dtype(in, "in", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(in);
    Tensor out = torch::stable::empty_like(in);
    cuda::SoftmaxSlopeArgs<T> args{};
    args.g = in.size(0), args.rows = in.size(1), args.shape = {log, outer, size, inner};
    args.tangent = tangent;
    args.y = pointer<T>(y), args.in = pointer<T>(in);
    args.dy = pointer<T>(dy), args.ry = pointer<T>(ry);
    args.out = out.template mutable_data_ptr<T>();
    check(cuda::softmax_slopes(args, launch.stream()));
    return out;
  });
}

// Layer or group norm, as cuda::NormSlopeArgs, of g vectors: x and dy (1, rows, .), in and rx
// (g, rows, .), rgain and rshift (g, gains). (result if wanted, terms of the gain in a reverse pass)
inline std::tuple<Tensor, Tensor> norm_slopes(const Tensor& x, const Tensor& in, const Tensor& dy,
                                              const Tensor& rx, const Tensor& gain,
                                              const Tensor& rgain, const Tensor& rshift, int64_t g,
                                              int64_t pass, int64_t outer, int64_t size,
                                              int64_t pixels, bool channels, double eps,
                                              bool wanted) {
  const int64_t features = outer * size;
  expect(x.dim() == 3 && x.is_contiguous() && x.size(0) == 1 && x.size(2) == features,
         "x: expected a contiguous (1, rows, ", features, "), got ", shape_of(x));
  expect(pass >= 0 && pass <= 2, "pass: expected 0, 1 or 2, got ", pass);
  expect(pixels > 0 && size > 0 && size % pixels == 0, "size: expected a multiple of pixels");
  const auto which = static_cast<cuda::NormPass>(pass);
  const int64_t rows = x.size(1), all = rows * features, width = size / pixels;
  const int64_t gains = channels ? outer * width : width;
  expect_beside(in, "in", g * all, x, which == cuda::NormPass::kTangent);
  expect_beside(dy, "dy", all, x, which != cuda::NormPass::kSecond);
  expect_beside(rx, "rx", g * all, x, true);
  expect_beside(gain, "gain", gains, x, true);
  const int64_t step = std::max(bias_step(rgain, g, gains, x), bias_step(rshift, g, gains, x));
  return with_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(x);
    const auto room = [&](bool needed) {
      return needed ? torch::stable::new_empty(x, {g, rows, features})
                    : torch::stable::new_empty(x, {0});
    };
    Tensor out = room(wanted), terms = room(which != cuda::NormPass::kTangent);
    cuda::NormSlopeArgs<T> args{};
    args.g = g, args.rows = rows, args.shape = {outer, size, eps, pixels, channels};
    args.pass = which, args.gain_step = step;
    args.x = pointer<T>(x), args.in = pointer<T>(in), args.dy = pointer<T>(dy);
    args.rx = pointer<T>(rx), args.gain = pointer<T>(gain);
    args.rgain = pointer<T>(rgain), args.rshift = pointer<T>(rshift);
    args.out = given(out) ? out.template mutable_data_ptr<T>() : nullptr;
    args.terms = given(terms) ? terms.template mutable_data_ptr<T>() : nullptr;
    check(cuda::norm_slopes(args, launch.stream()));
    return std::make_tuple(out, terms);
  });
}

// Of maxima over windows of x (rows, pixels, channels): the position in `index` of the first tap
// that reaches each (rows, outputs, channels), int32; and, if even, 1 / how many do. As everywhere
// here, what bounds, index and the lists hold is taken as given: it comes from a Program.
inline std::tuple<Tensor, Tensor> pool_winners(const Tensor& x, const Tensor& bounds,
                                               const Tensor& index, bool even) {
  expect(x.dim() == 3 && x.is_contiguous(),
         "x: expected a contiguous (rows, pixels, channels), got ", shape_of(x));
  expect(bounds.numel() > 0, "bounds: expected outputs + 1 elements");
  expect_tensor(bounds, "bounds", ScalarType::Long, bounds.numel(), x);
  expect_tensor(index, "index", ScalarType::Long, index.numel(), x);
  return with_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(x);
    cuda::PoolSlopeArgs<T> args{};
    args.rows = x.size(0), args.pixels = x.size(1), args.channels = x.size(2);
    args.outputs = bounds.numel() - 1;
    Tensor win = torch::stable::new_empty(x, {args.rows, args.outputs, args.channels},
                                          ScalarType::Int);
    Tensor share = even ? torch::stable::new_empty(x, {args.rows, args.outputs, args.channels})
                        : torch::stable::new_empty(x, {0});
    args.bounds = pointer<int64_t>(bounds), args.index = pointer<int64_t>(index);
    args.x = pointer<T>(x), args.win = win.template mutable_data_ptr<int32_t>();
    args.share = given(share) ? share.template mutable_data_ptr<T>() : nullptr;
    check(cuda::pool_winners(args, launch.stream()));
    return std::make_tuple(win, share);
  });
}

// What both passes read of a maximum.
template <typename T>
void take_winners(const Tensor& x, const Tensor& win, const Tensor& share, int64_t outputs,
                  const Tensor& beside, cuda::PoolSlopeArgs<T>& args) {
  if (!given(win)) return;
  const int64_t count = args.rows * outputs * args.channels;
  expect_beside(x, "x", args.rows * args.pixels * args.channels, beside, !given(share));
  expect_tensor(win, "win", ScalarType::Int, count, beside);
  expect_beside(share, "share", count, beside, true);
  args.x = pointer<T>(x);
  args.win = const_cast<int32_t*>(pointer<int32_t>(win));  // read only
  args.share = const_cast<T*>(pointer<T>(share));
}

// (g, rows, outputs, channels) of tangents (g, rows, pixels, channels) of x.
inline Tensor pool_tangent(const Tensor& in, const Tensor& x, const Tensor& win,
                           const Tensor& share, const Tensor& bounds, const Tensor& index) {
  expect(in.dim() == 4 && in.is_contiguous(),
         "in: expected a contiguous (g, rows, pixels, channels), got ", shape_of(in));
  expect(bounds.numel() > 0, "bounds: expected outputs + 1 elements");
  expect_tensor(bounds, "bounds", ScalarType::Long, bounds.numel(), in);
  expect_tensor(index, "index", ScalarType::Long, index.numel(), in);
  expect(given(win) || in.numel() == 0, "win: expected that of the maxima");
  return with_dtype(in, "in", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(in);
    cuda::PoolSlopeArgs<T> args{};
    args.g = in.size(0), args.rows = in.size(1), args.pixels = in.size(2);
    args.channels = in.size(3), args.outputs = bounds.numel() - 1;
    take_winners(x, win, share, args.outputs, in, args);
    args.mode = given(share) ? cpu::Pool::kMaxEven : cpu::Pool::kMax;
    args.bounds = pointer<int64_t>(bounds), args.index = pointer<int64_t>(index);
    Tensor out =
        torch::stable::new_empty(in, {args.g, args.rows, args.outputs, args.channels});
    args.in = pointer<T>(in), args.out = out.template mutable_data_ptr<T>();
    check(cuda::pool_tangent(args, launch.stream()));
    return out;
  });
}

// (g, rows, pixels, channels) of adjoints (g, rows, outputs, channels); without `win`, of a sum
// times a factor (outputs,), or (index,) of each tap, or none.
inline Tensor pool_reverse(const Tensor& in, const Tensor& x, const Tensor& win,
                           const Tensor& share, const Tensor& index, const Tensor& factor,
                           const Tensor& start, const Tensor& list, const Tensor& window) {
  expect(in.dim() == 4 && in.is_contiguous(),
         "in: expected a contiguous (g, rows, outputs, channels), got ", shape_of(in));
  expect_tensor(index, "index", ScalarType::Long, index.numel(), in);
  expect_tensor(start, "start", ScalarType::Int, start.numel(), in);
  expect_tensor(list, "list", ScalarType::Int, index.numel(), in);
  expect_tensor(window, "window", ScalarType::Int, index.numel(), in);
  expect(start.numel() > 0, "start: expected pixels + 1 elements");
  const bool per_tap = factor.numel() == index.numel();
  expect_tensor(factor, "factor", ScalarType::Double,
                given(factor) ? (per_tap ? index.numel() : in.size(2)) : 0, in);
  return with_dtype(in, "in", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(in);
    cuda::PoolSlopeArgs<T> args{};
    args.g = in.size(0), args.rows = in.size(1), args.outputs = in.size(2);
    args.channels = in.size(3), args.pixels = start.numel() - 1;
    take_winners(x, win, share, args.outputs, in, args);
    args.mode = !given(win) ? cpu::Pool::kSum
                : given(share) ? cpu::Pool::kMaxEven
                               : cpu::Pool::kMax;
    args.index = pointer<int64_t>(index), args.factor = pointer<double>(factor);
    args.per_tap = factor.numel() != args.outputs;
    args.start = pointer<int32_t>(start), args.list = pointer<int32_t>(list);
    args.window = pointer<int32_t>(window);
    Tensor out =
        torch::stable::new_empty(in, {args.g, args.rows, args.pixels, args.channels});
    args.in = pointer<T>(in), args.out = out.template mutable_data_ptr<T>();
    check(cuda::pool_reverse(args, launch.stream()));
    return out;
  });
}

inline void implement_derivatives(torch::stable::detail::StableLibrary& m) {
  m.impl("pair_products", TORCH_BOX(&pair_products));
  m.impl("pair_sums_", TORCH_BOX(&pair_sums_));
  m.impl("add_row_sums_", TORCH_BOX(&add_row_sums_));
  m.impl("bend_", TORCH_BOX(&bend_));
  m.impl("unary_slopes", TORCH_BOX(&unary_slopes));
  m.impl("scatter_sums", TORCH_BOX(&scatter_sums));
  m.impl("loss_slopes", TORCH_BOX(&loss_slopes));
  m.impl("softmax_slopes", TORCH_BOX(&softmax_slopes));
  m.impl("norm_slopes", TORCH_BOX(&norm_slopes));
  m.impl("pool_winners", TORCH_BOX(&pool_winners));
  m.impl("pool_tangent", TORCH_BOX(&pool_tangent));
  m.impl("pool_reverse", TORCH_BOX(&pool_reverse));
}

}  // namespace pylandscape
