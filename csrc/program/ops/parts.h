// How some ops read their inputs, for their passes here and in points/.
#pragma once
#include <algorithm>

#include "program/op_list.h"

namespace pylandscape {

inline cpu::SoftmaxArgs softmax_of(const Op& op) { return {op.log, op.outer, op.k, op.inner}; }

// f(part, offset in the output, rows) for the parts of a concatenation, in order.
template <typename F>
void each_part(const Op& op, const std::vector<int64_t>& slots, F f) {
  int64_t offset = 0;
  for (size_t i = 0; i < op.rows.size(); ++i) {
    f(op.inputs[i], op.rows[i].first, offset, op.rows[i].count);
    offset += op.rows[i].count;
  }
  if (!op.rows.empty()) return;
  for (int64_t o = 0; o < op.outer; ++o)
    for (const int slot : op.inputs) {
      const int64_t rows = slots[slot] / op.outer;
      f(slot, o * rows, offset, rows);
      offset += rows;
    }
}

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

// The adjoint of a gather: dx row index[f] += dy row f.
template <typename T>
void scatter_add(const Op& op, const cpu::Kernels<T>& kernels, int64_t cols, const T* dy, T* dx) {
  each_run(op.index, [&](int64_t first, int64_t from, int64_t count) {
    if (from >= 0)
      kernels.product_add(count * cols, T(1), dy + first * cols, nullptr, dx + from * cols);
  });
}

// y (index, size, cols): for each of the op's rows of ids, the rows of a table (ids, size) that they
// name; zero where one is `padding`.
template <typename T>
void look_up(const Op& op, int64_t size, int64_t cols, const cpu::Kernels<T>& kernels,
             int64_t padding, const T* table, const T* ids, T* y) {
  for (size_t i = 0; i < op.index.size(); ++i)
    kernels.embedding(size, cols, padding, table, ids + op.index[i] * cols,
                      y + static_cast<int64_t>(i) * size * cols);
}

// Adjoints of z = x y are products again: dx (m, k) += dz y^T, dy (k, n) += x^T dz.
inline cpu::MatmulArgs matmul_dx(const Op& op) {
  const cpu::MatmulArgs a = op.matmul();
  return {a.outer, a.m, a.k, a.n, a.zi, a.zj, a.yj, a.yk, a.xi, a.xk, a.z_outer, a.y_outer,
          a.x_outer};
}
inline cpu::MatmulArgs matmul_dy(const Op& op) {
  const cpu::MatmulArgs a = op.matmul();
  return {a.outer, a.k, a.n, a.m, a.xk, a.xi, a.zi, a.zj, a.yk, a.yj, a.x_outer, a.z_outer,
          a.y_outer};
}

}  // namespace pylandscape
