// Derivatives on a GPU, as tensor ops (cuda/products.h): what stands between torch's products, and
// products of small matrices. Optional tensors are empty where they are not there. Nothing here
// waits for the device.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "binding/cuda_launch.h"
#include "binding/direction_ops.h"
#include "binding/program_ops.h"
#include "cuda/products.h"

namespace pylandscape {

inline bool given(const Tensor& x) { return x.numel() > 0; }

template <typename T>
const T* pointer(const Tensor& x) {
  return given(x) ? x.const_data_ptr<T>() : nullptr;
}

// Of the dtype and device of `beside`; contiguous with `count` elements, or empty if it may be.
inline void expect_beside(const Tensor& x, const char* name, int64_t count, const Tensor& beside,
                          bool optional = false) {
  if (optional && !given(x)) return;
  expect_tensor(x, name, beside.scalar_type(), count, beside);
}

// f(T()) for the dtype of x.
template <typename F>
auto with_dtype(const Tensor& x, const char* name, F f) {
  expect_floating(x, name);
  return x.scalar_type() == ScalarType::Float ? f(float()) : f(double());
}

// One or two pairs of matrices over the batch.
struct __attribute__((visibility("hidden"))) Pairs {
  const Tensor* x[4];
  int64_t g = 1;
  int count;
  Pairs(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d, int outer_a,
        int outer_b)
      : x{&a, &b, &c, &d}, count(c.dim() == 3 ? 2 : 1) {
    for (int i = 0; i < 2 * count; ++i) {
      const Tensor& own = *x[i];
      expect(own.dim() == 3, "matrices: expected shape (g, ., .), got ", shape_of(own));
      expect(own.scalar_type() == a.scalar_type() && own.device() == a.device(),
             "matrices: expected one dtype and device");
      g = std::max(g, own.size(0));
    }
    for (int i = 0; i < 2 * count; ++i) {
      const Tensor &own = *x[i], &first = *x[i % 2], &other = *x[i ^ 1];
      const int outer = i % 2 == 0 ? outer_a : outer_b, across = i % 2 == 0 ? outer_b : outer_a;
      expect((own.size(0) == g || own.size(0) == 1) && own.size(outer) == first.size(outer) &&
                 own.size(3 - outer) == other.size(3 - across),
             "matrices: expected pairs that fit, got ", shape_of(own), " beside ",
             shape_of(other));
    }
  }
  template <typename T>
  cuda::Operand<T> operand(int i, int outer, bool ones = false) const {
    const Tensor& m = *x[i];
    return {pointer<T>(m), m.size(0) == 1 ? 0 : m.stride(0), m.stride(outer), m.stride(3 - outer),
            m.size(outer), ones};
  }
};

inline void expect_bend(const Tensor& first, const Tensor& curved, const Tensor& r, int64_t count,
                        int64_t g, const Tensor& beside) {
  expect_beside(first, "first", count, beside);
  expect_beside(curved, "curved", count, beside, true);
  expect_beside(r, "r", g * count, beside, true);
  expect(given(curved) == given(r), "curved, r: expected both or neither");
}

template <typename T>
cuda::Bend<T> bend_of(const Tensor& first, bool positive, const Tensor& curved, const Tensor& r) {
  return {pointer<T>(first), positive, pointer<T>(curved), pointer<T>(r)};
}

// (g, columns) with neighbouring columns, or empty.
inline int64_t bias_step(const Tensor& bias, int64_t g, int64_t columns, const Tensor& beside) {
  if (!given(bias)) return 0;
  expect(bias.dim() == 2 && (bias.size(0) == g || bias.size(0) == 1) && bias.size(1) == columns &&
             (bias.stride(1) == 1 || columns == 1),
         "bias: expected shape (", g, ", ", columns, "), got ", shape_of(bias));
  expect(bias.scalar_type() == beside.scalar_type() && bias.device() == beside.device(),
         "bias: expected the matrices' dtype and device");
  return bias.size(0) == 1 ? 0 : bias.stride(0);
}

// t = a b (+ c d) + bias, (g, rows, columns), of a (1 | g, rows, inner), b (1 | g, inner, columns);
// and, with `first`, bent = first t + curved r. (t or empty, bent or empty).
inline std::tuple<Tensor, Tensor> pair_products(const Tensor& a, const Tensor& b, const Tensor& c,
                                                const Tensor& d, const Tensor& bias,
                                                const Tensor& first, bool positive,
                                                const Tensor& curved, const Tensor& r, bool keep) {
  const Pairs pairs(a, b, c, d, 1, 2);
  const int64_t g = pairs.g, rows = a.size(1), columns = b.size(2);
  expect(g <= 65535, "matrices: expected at most 65535, got ", g);
  const bool bends = given(first);
  if (bends) expect_bend(first, curved, r, rows * columns, g, a);
  return with_dtype(a, "a", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(a);
    cuda::PairArgs<T> args{};
    args.g = g, args.rows = rows, args.columns = columns, args.pairs = pairs.count;
    for (int p = 0; p < pairs.count; ++p) {
      args.inner[p] = pairs.x[2 * p]->size(2);
      args.a[p] = pairs.operand<T>(2 * p, 1), args.b[p] = pairs.operand<T>(2 * p + 1, 2);
    }
    args.bias_step = bias_step(bias, g, columns, a), args.bias = pointer<T>(bias);
    args.bend = bend_of<T>(first, positive, curved, r);
    const auto room = [&](bool wanted) {
      return wanted ? torch::stable::new_empty(a, {g, rows, columns})
                    : torch::stable::new_empty(a, {0});
    };
    Tensor out = room(keep || !bends), bent = room(bends);
    args.out = given(out) ? out.template mutable_data_ptr<T>() : nullptr;
    args.bent = given(bent) ? bent.template mutable_data_ptr<T>() : nullptr;
    check(cuda::pair_products(args, launch.stream()));
    return std::make_tuple(out, bent);
  });
}

// Rows of sums (g, n) float64, and which of their elements are added to.
inline void expect_sums(const Tensor& out, int64_t g, const Tensor& beside) {
  expect(out.dim() == 2 && out.size(0) == g && out.scalar_type() == ScalarType::Double &&
             (out.stride(1) == 1 || out.size(1) == 1) && out.device() == beside.device(),
         "out: expected float64 (", g, ", n) on the others' device, got shape ", shape_of(out));
}

inline cuda::Place place_of(int64_t at, int64_t bias_at, bool transposed, int64_t rows,
                            int64_t columns, int64_t n) {
  const bool bias = bias_at >= 0;
  expect(at >= 0 && at + rows * columns <= n && (!bias || bias_at + rows <= n),
         "at, bias_at: expected places within ", n, ", got ", at, " and ", bias_at);
  return {at, transposed ? 1 : columns, transposed ? rows : 1, columns, columns + bias, bias_at};
}

// out[j, at ...] += sum over samples of a b (+ c d), (rows, columns), or its transpose, of
// a (1 | g, samples, rows), b (1 | g, samples, columns); out[j, bias_at ...] += that of a, unless
// bias_at < 0.
inline Tensor pair_sums_(Tensor out, int64_t at, int64_t bias_at, bool transposed, const Tensor& a,
                         const Tensor& b, const Tensor& c, const Tensor& d) {
  const Pairs pairs(a, b, c, d, 2, 2);
  const int64_t rows = a.size(2), columns = b.size(2), samples = a.size(1), g = out.size(0);
  expect(pairs.g <= g && g <= 65535, "out: expected a row for each of the matrices");
  expect_sums(out, g, a);
  for (int i = 2; i < 2 * pairs.count; ++i)
    expect(pairs.x[i]->size(1) == samples, "matrices: expected the same samples");
  return with_dtype(a, "a", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(a);
    cuda::SumArgs<T> args{};
    args.g = g, args.rows = rows, args.columns = columns, args.samples = samples;
    args.pairs = pairs.count;
    args.place = place_of(at, bias_at, transposed, rows, columns, out.size(1));
    for (int p = 0; p < pairs.count; ++p) {
      args.a[p] = pairs.operand<T>(2 * p, 2);
      args.b[p] = pairs.operand<T>(2 * p + 1, 2, p == 0 && bias_at >= 0);
    }
    args.splits = cuda::sum_splits(rows, args.place.width, samples);
    Tensor parts = torch::stable::new_empty(
        out, {args.splits > 1 ? g * args.splits * rows * args.place.width : 0});
    args.parts = given(parts) ? parts.template mutable_data_ptr<double>() : nullptr;
    args.out = out.template mutable_data_ptr<double>(), args.out_step = out.stride(0);
    check(cuda::pair_sums(args, launch.stream()));
    return out;
  });
}

// out[j, at ...] += the sums over rows of x (g, rows, columns); with m > 0 their transpose, if
// columns are (m, columns / m).
inline Tensor add_row_sums_(Tensor out, int64_t at, const Tensor& x, int64_t m) {
  expect(x.dim() == 3 && x.is_contiguous() && x.size(0) <= 65535,
         "x: expected a contiguous (g, rows, columns), g at most 65535, got ",
         shape_of(x));
  expect(m >= 0 && (m == 0 || x.size(2) % m == 0), "m: expected a divisor of the columns");
  expect_sums(out, x.size(0), x);
  return with_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const Launch launch(x);
    cuda::RowSumArgs<T> args{};
    args.g = x.size(0), args.rows = x.size(1), args.columns = x.size(2);
    const int64_t rows = m > 0 ? m : 1;
    args.place = place_of(at, -1, m > 0, rows, args.columns / rows, out.size(1));
    args.x = pointer<T>(x);
    const int64_t parts = cuda::row_parts(args.rows);
    Tensor work = torch::stable::new_empty(out, {parts > 1 ? args.g * parts * args.columns : 0});
    args.parts = given(work) ? work.template mutable_data_ptr<double>() : nullptr;
    args.out = out.template mutable_data_ptr<double>(), args.out_step = out.stride(0);
    check(cuda::add_row_sums(args, launch.stream()));
    return out;
  });
}

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
// times a factor (outputs,) or none.
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
  expect_tensor(factor, "factor", ScalarType::Double, given(factor) ? in.size(2) : 0, in);
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
