// How an embedding and a lookup read their tables.
#pragma once
#include "program/op_list.h"

namespace pylandscape {

// y (index, size, cols): for each of the op's rows of ids, the rows of a table (ids, size) that they
// name; zero where one is `padding`.
template <typename T>
void look_up(const Op& op, int64_t size, int64_t cols, const cpu::Kernels<T>& kernels,
             int64_t padding, const T* table, const T* ids, T* y) {
  for (size_t i = 0; i < op.index.size(); ++i)
    kernels.embedding(size, cols, padding, table, ids + op.index[i] * cols,
                      y + static_cast<int64_t>(i) * size * cols);
}

}  // namespace pylandscape
