// gather: feature f is feature index[f] of the input, or a constant where that is -1.
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

int OpList::gather(int x, std::vector<int64_t> index, double fill) {
  Op op(OpKind::kGather, {x});
  for (const int64_t i : index)
    require(i >= -1 && i < in_features(x), "gather: index out of range");
  op.index = std::move(index), op.a = fill;
  return add(std::move(op), static_cast<int64_t>(op.index.size()));
}

namespace {

// f(first, from, count) for the runs of consecutive entries: index[first + i] = from + i, or all -1.
template <typename F>
void each_run(const std::vector<int64_t>& index, F f) {
  const int64_t size = static_cast<int64_t>(index.size());
  for (int64_t first = 0, last = 0; first < size; first = last) {
    const int64_t from = index[first], step = from < 0 ? 0 : 1;
    for (++last; last < size && index[last] == from + step * (last - first);) ++last;
    f(first, from, last - first);
  }
}

// y row f = x row index[f], or `fill`; rows of cols elements.
template <typename T>
void gather_rows(const std::vector<int64_t>& index, int64_t cols, T fill, const T* x, T* y) {
  each_run(index, [&](int64_t first, int64_t from, int64_t count) {
    if (from < 0) std::fill_n(y + first * cols, count * cols, fill);
    else std::copy_n(x + from * cols, count * cols, y + first * cols);
  });
}

struct Gather : Rules<Gather> {
  template <class P>
  static void call(const P& c) {
    gather_rows(c.op.index, c.cols, static_cast<typename P::Value>(c.op.a), c.x(), c.y);
  }

  static void resident(ResidentStep& s) {
    s.gather();
    for (const int64_t from : s.op.index)
      s.list.push_back(from < 0 ? resident::kFill : s.row(s.op.inputs[0], from));
  }

  static void hessian(HessianSteps& to, const PointStep& step) {
    std::vector<int64_t> index;
    for (const int64_t from : step.op.index)
      index.push_back(from < 0 ? int64_t{hessian::kFill} : to.row(step.op.inputs[0]) + from);
    to.gather(step, index);
  }

  template <class P>
  static void reverse(const P& p) {
    scatter_add(p, p.dy, p.dx);
  }

  template <class P>
  static void tangent_forward(const P& p) {
    gather_rows(p.op.index, p.cols, typename P::Value(0), p.rx, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    scatter_add(p, p.rdy, p.rdx);
  }

  // dx row index[f] += dy row f.
  template <class P, typename T>
  static void scatter_add(const P& p, const T* dy, T* dx) {
    each_run(p.op.index, [&](int64_t first, int64_t from, int64_t count) {
      if (from >= 0)
        p.kernels.product_add(count * p.cols, 1, dy + first * p.cols, nullptr, dx + from * p.cols);
    });
  }
};

}  // namespace

const OpEntry ops::gather = make_entry<Gather>();

}  // namespace pylandscape
