// layer_norm: over the k features of each of `outer` groups, with a gain and a shift for each.
#include "program/ops/norm_rules.h"

namespace pylandscape {

int OpList::layer_norm(int x, int64_t outer, int64_t size, double eps, const int64_t* gain,
                           const int64_t* shift) {
  require(in_features(x) == outer * size && size > 0, "layer_norm: features are not outer * size");
  Op op(OpKind::kLayerNorm, {x});
  op.outer = outer, op.k = size, op.a = eps;
  if (gain != nullptr) op.weight = use(*gain, 1, size);
  if (shift != nullptr) op.bias = use(*shift, 1, size);
  return add(std::move(op), in_features(x));
}

namespace {

struct LayerNorm : NormRules<LayerNorm> {
  static constexpr bool in_place = true;
  static int64_t gains(const Op& op) { return op.k; }

  template <class P>
  static void call(const P& c) {
    c.kernels.layer_norm(c.op.outer, c.op.k, c.cols, c.op.a, c.at.weight, c.at.bias, c.x(), c.y);
  }

  static void resident(ResidentStep& s) {
    s.step.kind = resident::Kind::kLayerNorm;
    s.step.weight = s.weight(s.op.weight), s.step.bias = s.weight(s.op.bias);
  }
};

}  // namespace

const OpEntry ops::layer_norm = make_entry<LayerNorm>();

}  // namespace pylandscape
