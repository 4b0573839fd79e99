// group_norm: over the channels of a group at all pixels, with a gain and a shift for each channel.
#include "program/ops/norm_rules.h"

namespace pylandscape {

int OpList::group_norm(int x, int64_t groups, int64_t pixels, int64_t channels, double eps,
                           const int64_t* gain, const int64_t* shift) {
  require(groups > 0 && pixels > 0 && channels > 0 && channels % groups == 0,
          "group_norm: channels are not groups of one size");
  require(in_features(x) == pixels * channels, "group_norm: features are not pixels * channels");
  Op op(OpKind::kGroupNorm, {x});
  op.outer = groups, op.k = pixels * channels / groups, op.inner = pixels, op.a = eps;
  if (gain != nullptr) op.weight = use(*gain, 1, channels);
  if (shift != nullptr) op.bias = use(*shift, 1, channels);
  return add(std::move(op), in_features(x));
}

namespace {

struct GroupNorm : NormRules<GroupNorm> {
  static bool takes_relu(const Op&) { return true; }
  static int64_t gains(const Op& op) { return op.outer * op.k / op.inner; }

  template <class P>
  static void call(const P& c) {
    c.kernels.group_norm(c.op.norm_args(), c.cols, c.at.weight, c.at.bias, c.op.relu, c.x(), c.y);
  }
};

}  // namespace

const OpEntry ops::group_norm = make_entry<GroupNorm>();

}  // namespace pylandscape
