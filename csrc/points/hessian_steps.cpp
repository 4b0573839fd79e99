#include "points/hessian_steps.h"

namespace pylandscape {

int32_t HessianSteps::narrow(int64_t x) {
  if (x < INT32_MIN / 2 || x > INT32_MAX / 2) refuse("a network that is too large");
  return static_cast<int32_t>(x);
}

int64_t HessianSteps::take_rows(int64_t count) {
  const int64_t from = rows_;
  rows_ += count;
  return from;
}

int32_t HessianSteps::add_list(const std::vector<int64_t>& entries) {
  const int32_t from = narrow(static_cast<int64_t>(list_.size()));
  for (const int64_t e : entries) list_.push_back(e == hessian::kFill ? hessian::kFill : narrow(e));
  return from;
}

int32_t HessianSteps::add_constants(const double* from, int64_t count) {
  const int32_t at = narrow(n_ + static_cast<int64_t>(constants_.size()));
  constants_.insert(constants_.end(), from, from + count);
  return at;
}

int32_t HessianSteps::source(int64_t place, int64_t count) {
  if (place < 0) return -1;
  return place < n_ ? narrow(place) : add_constants(from_.data() + (place - n_), count);
}

hessian::Step& HessianSteps::add(hessian::Kind kind, const PointStep& from) {
  place(from.op.output, narrow(take_rows(features(from.op.output))));
  return add(kind, from, row(from.op.output));
}

hessian::Step& HessianSteps::add(hessian::Kind kind, const PointStep& from, int32_t out) {
  if (steps_.size() >= size_t{hessian::kMaxSteps})
    refuse("more than " + std::to_string(hessian::kMaxSteps) + " steps");
  const Op& op = from.op;
  hessian::Step s{};
  s.kind = kind, s.out = out, s.weight = s.bias = -1;
  s.relu = op.relu, s.moves = from.moves;
  if (!op.inputs.empty()) s.x = row(op.inputs[0]);
  if (op.inputs.size() > 1) s.y = row(op.inputs[1]);
  s.m = narrow(features(op.output));
  s.a = op.a, s.b = op.b, s.log = op.log;
  s.outer = narrow(op.outer), s.k = narrow(op.k), s.inner = narrow(op.inner);
  steps_.push_back(s);
  return steps_.back();
}

void HessianSteps::gather(const PointStep& from, const std::vector<int64_t>& index) {
  hessian::Step& s = add(hessian::Kind::kGather, from);
  s.relu = 0, s.index = add_list(index);
}

}  // namespace pylandscape
