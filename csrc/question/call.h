// A call of an op: its kernel on one tile of one point, or of as many points as a vector has lanes.
#pragma once
#include "program/op_list.h"

namespace pylandscape {

// Of an op, as its kernels want them; null where it has none.
template <typename T>
struct Parameters {
  const T *weight, *bias, *second, *gain, *shift, *mean, *variance;
  // of(use): where a use lies.
  template <typename F>
  Parameters(const Op& op, F of)
      : weight(get(op.weight, of)),
        bias(get(op.bias, of)),
        second(get(op.second, of)),
        gain(get(op.norm.gain, of)),
        shift(get(op.norm.shift, of)),
        mean(get(op.norm.mean, of)),
        variance(get(op.norm.variance, of)) {}

 private:
  template <typename F>
  static const T* get(int use, F of) {
    return use < 0 ? nullptr : of(use);
  }
};

template <typename T>
struct Call {
  using Value = T;
  const Op& op;
  const OpList& program;
  const cpu::Kernels<T>& kernels;
  int64_t cols;
  const T* const* slots;  // (features, cols) each
  Parameters<T> at;
  const T* table;  // of a lookup
  T* y;            // the output, (features, cols); may be an input of an op that works in place
  T* room = nullptr;  // of a question: for whoever wants it (OpList::room_ vectors)

  const T* x(size_t input = 0) const { return slots[op.inputs[input]]; }
  const std::vector<int64_t>& features() const { return program.slots(); }
  int64_t rows() const { return program.features(op.output); }
  int64_t size() const { return rows() * cols; }
};

}  // namespace pylandscape
