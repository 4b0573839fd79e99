#include "program/op_list.h"

#include <algorithm>
#include <stdexcept>

#include "program/ops/entry.h"
#include "program/plan.h"

namespace pylandscape {
namespace {

constexpr int64_t kAlign = 16;  // packed uses start at multiples of this many elements

}  // namespace

void OpList::require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(std::string("Program: ") + message);
}

OpList::OpList(int64_t n, int64_t constants) : n_(n), constant_count_(constants) {
  require(n >= 0, "n must not be negative");
}

int OpList::slot(int64_t features) {
  require(output_ < 0, "already finished");
  slots_.push_back(features);
  return static_cast<int>(slots_.size()) - 1;
}

int OpList::add(Op&& op, int64_t features) {
  op.output = slot(features);
  ops_.push_back(std::move(op));
  return ops_.back().output;
}

int64_t OpList::in_features(int s) const {
  if (s < 0 || s >= static_cast<int>(slots_.size()))
    require(false, "unknown slot " + std::to_string(s));
  return slots_[s];
}

int OpList::use(int64_t source, int64_t rows, int64_t cols, Use::Packing packing,
                const cpu::ConvArgs& conv) {
  const int64_t size = rows * cols, first = source >= 0 ? source : -1 - source;
  const int64_t limit = source >= 0 ? n_ : constant_count_;
  require(rows >= 0 && cols >= 0 && first + size <= limit,
          "parameter at " + std::to_string(source) + " of " + std::to_string(size) +
              " elements is outside its source of " + std::to_string(limit));
  for (size_t i = 0; i < uses_.size(); ++i) {
    const Use& u = uses_[i];
    if (u.source == source && u.rows == rows && u.cols == cols && u.packing == packing &&
        u.conv.groups == conv.groups && u.conv.channels == conv.channels &&
        u.conv.kernel_h == conv.kernel_h)
      return static_cast<int>(i);
  }
  uses_.push_back({source, rows, cols, packing, packed_size_, conv});
  packed_size_ += round_up(size, kAlign);
  return static_cast<int>(uses_.size()) - 1;
}

int OpList::input(int64_t features) {
  require(slots_.empty(), "the input comes first and once");
  return slot(features);
}

bool OpList::mixes() const {
  return std::any_of(ops_.begin(), ops_.end(), [](const Op& op) { return op.norm.own; });
}

bool OpList::draws() const {
  return std::any_of(ops_.begin(), ops_.end(),
                     [](const Op& op) { return op.kind == OpKind::kDropout; });
}

bool OpList::divisible() const {
  int64_t whole = 0, divided = 0;
  for (const Op& op : ops_) {
    const cpu::MatmulArgs& a = op.strides;
    if (op.kind == OpKind::kMatmul) divided += op.outer * a.m * a.n * a.k;
    if (entry(op.kind).columns == nullptr) continue;
    (op.kind == OpKind::kLinear ? divided : whole) += features(op.output) * uses_[op.weight].cols;
  }
  return divided >= 3 * whole;
}

void OpList::place_slots() {
  const std::vector<bool> all(fused_.size(), true);
  Arena arena = plan_arena(*this, fused_, all, all);
  place_ = std::move(arena.place), arena_rows_ = arena.rows;
  const std::vector<Op> single = device_ops();
  const std::vector<bool> each(single.size(), true);
  live_rows_ = plan_arena(*this, single, each, each).rows;
}

void OpList::finish(int output) {
  in_features(output);
  require(output_ < 0, "already finished");
  output_ = output;
  drop_unread(ops_);
  fuse_relu();
  fuse_epilogues();
  fuse_attention();
  place_slots();
}

}  // namespace pylandscape
