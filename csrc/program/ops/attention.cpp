// attention: two products with a softmax between them, by blocks of queries, whose scores alone exist
// at a time. It stands in for these ops in questions; derivatives and GPUs never meet it.
#include <algorithm>
#include <cmath>

#include "program/ops/entry.h"

namespace pylandscape {
namespace {

// Whether a product reads as its x, in order, what a softmax makes of the rows of another's results.
bool in_rows(const Op& scores, const Op& softmax, const Op& product) {
  const cpu::MatmulArgs &s = scores.strides, &v = product.strides;
  return !softmax.log && softmax.inner == 1 && softmax.k == s.n &&
         softmax.outer == s.outer * s.m && s.zj == 1 && s.zi == s.n && v.outer == s.outer &&
         v.m == s.m && v.k == s.n && v.xk == 1 && v.xi == s.n && product.x_outer == scores.z_outer;
}

// How many elements of each row of `size` a gather leaves as they are, where these are the first
// ones, and at least one, and the others are -inf. Else nothing.
std::vector<int64_t> first_left(const Op& gather, int64_t size) {
  if (gather.a != -INFINITY) return {};
  const auto& index = gather.index;
  std::vector<int64_t> left;
  for (int64_t from = 0; from < static_cast<int64_t>(index.size()); from += size) {
    int64_t count = 0;
    while (count < size && index[from + count] == from + count) ++count;
    const auto rest = index.begin() + from;
    if (count == 0 || std::any_of(rest + count, rest + size, [](int64_t i) { return i >= 0; }))
      return {};
    left.push_back(count);
  }
  return left;
}

}  // namespace

// scores, which may be multiplied by a number and hidden (-inf) behind the first keys of each query;
// softmax; the product with the values.
void OpList::fuse_attention() {
  const std::vector<int> read = readers();
  std::vector<int> maker(slots_.size(), -1);  // position in fused_
  std::vector<bool> taken(fused_.size(), false);
  const auto alone = [&](int slot, OpKind kind) {  // who makes it, for one reader; or null
    const int at = read[slot] == 1 ? maker[slot] : -1;
    return at >= 0 && fused_[at].kind == kind ? &fused_[at] : nullptr;
  };
  for (size_t i = 0; i < fused_.size(); ++i) {
    Op& op = fused_[i];
    maker[op.output] = static_cast<int>(i);
    if (op.kind != OpKind::kMatmul) continue;
    Op* softmax = alone(op.inputs[0], OpKind::kSoftmax);
    if (softmax == nullptr) continue;
    std::vector<Op*> parts = {&op, softmax};
    std::vector<int64_t> seen = softmax->bounds;
    Op* mask = seen.empty() ? alone(softmax->inputs[0], OpKind::kGather) : nullptr;
    if (mask != nullptr) {
      if (features(mask->output) == features(mask->inputs[0])) seen = first_left(*mask, softmax->k);
      if (seen.empty()) continue;
      parts.push_back(mask);
    }
    Op* scale = alone(parts.back()->inputs[0], OpKind::kUnary);
    if (scale != nullptr && scale->unary == cpu::Unary::kAffine) parts.push_back(scale);
    Op* scores = alone(parts.back()->inputs[0], OpKind::kMatmul);
    if (scores == nullptr || !in_rows(*scores, *softmax, op)) continue;
    parts.push_back(scores);
    Op all(OpKind::kAttention, {scores->inputs[0], scores->inputs[1], op.inputs[1]});
    all.output = op.output, all.bounds = std::move(seen);
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      taken[*part - fused_.data()] = *part != &op;
      all.parts.push_back(std::move(**part));
    }
    room_ = std::max(room_, all.attention().room());
    op = std::move(all);
  }
  std::vector<Op> kept;
  for (size_t i = 0; i < fused_.size(); ++i)
    if (!taken[i]) kept.push_back(std::move(fused_[i]));
  fused_ = std::move(kept);
}

cpu::AttentionArgs Op::attention() const {
  const Op& then = parts[1];
  const bool affine = then.kind == OpKind::kUnary;
  return {parts.front().matmul(), parts.back().matmul(), bounds.empty() ? nullptr : bounds.data(),
          affine, affine ? then.a : 1, affine ? then.b : 0};
}

std::vector<Op> OpList::device_ops() const {
  std::vector<Op> all;
  for (const Op& op : fused_) {
    if (op.parts.empty()) all.push_back(op);
    else all.insert(all.end(), op.parts.begin(), op.parts.end());
  }
  return all;
}

namespace {

struct Attention : QuestionRules<Attention> {
  static constexpr const char* no_points = "attention as one op";

  template <typename T>
  static void call(const Call<T>& c) {
    const Op& op = c.op;
    c.kernels.attention(op.attention(), c.cols, static_cast<T>(op.parts.front().a),
                        static_cast<T>(op.parts.back().a), c.x(), c.x(1), c.x(2), c.room, c.y);
  }
};

}  // namespace

const OpEntry ops::attention = make_entry<Attention>();

}  // namespace pylandscape
