#include "points/lowering.h"

#include <stdexcept>

namespace pylandscape {

void PointLowering::require(bool ok, const char* reason) {
  if (!ok) throw std::invalid_argument(reason);
}

int64_t PointLowering::place(int number) const {
  if (number < 0) return -1;
  const int64_t source = use(number).source;
  return source >= 0 ? source : program_.n() - 1 - source;
}

const double* PointLowering::constant(int number) const {
  return moves(number) ? nullptr : constants_.data() - 1 - use(number).source;
}

int PointLowering::add_slot(int64_t features) {
  features_.push_back(features);
  return static_cast<int>(features_.size()) - 1;
}

void PointLowering::add_parameter(int number, Op expand) {
  PointStep step(std::move(expand));
  step.bias = place(number), step.bias_moves = moves(number);
  step.key = step.op.index;
  add(std::move(step));
}

void PointLowering::add_with_gain(PointStep step, int gain, int shift, int64_t size) {
  if (gain < 0 && shift < 0) return add(std::move(step));
  const int output = step.op.output;
  const int64_t rows = features_[output];
  const bool relu = step.op.relu;
  step.op.relu = false;
  int slot = step.op.output = add_slot(rows);
  add(std::move(step));
  for (const int parameter : {gain, shift}) {
    if (parameter < 0) continue;
    Op values(OpKind::kExpand, {});
    for (int64_t f = 0; f < rows; ++f) values.index.push_back(f % size);
    Op op(OpKind::kBinary, {slot, values.output = add_slot(rows)});
    add_parameter(parameter, std::move(values));
    op.binary = parameter == gain ? cpu::Binary::kMul : cpu::Binary::kAdd;
    slot = op.output = add_slot(rows);
    add(PointStep(std::move(op)));
  }
  steps_.back().op.relu = relu;
  steps_.back().op.output = output;  // the last one writes where the op does
}

}  // namespace pylandscape
