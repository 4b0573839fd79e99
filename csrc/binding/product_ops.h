// Products of one or two pairs of small matrices and their sums over samples, as tensor ops
// (cuda/products.h). Optional tensors are empty where they are not there. Nothing here waits for the
// device.
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

}  // namespace pylandscape
