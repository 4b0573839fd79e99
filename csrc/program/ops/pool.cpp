// pool: the maximum or the sum over windows of pixels.
#include "program/ops/entry.h"

namespace pylandscape {

int OpList::pool(int x, cpu::Pool mode, int64_t channels, std::vector<int64_t> bounds,
                     std::vector<int64_t> index, std::vector<double> factor) {
  const bool sum = mode == cpu::Pool::kSum;
  require(channels > 0 && in_features(x) % channels == 0,
          "pool: input features are not pixels * channels");
  require(bounds.size() > 1 && bounds.front() == 0 &&
              bounds.back() == static_cast<int64_t>(index.size()),
          "pool: bounds do not cover the index");
  for (size_t o = 1; o < bounds.size(); ++o)
    require(bounds[o] - bounds[o - 1] >= (sum ? 0 : 1), "pool: an empty window");
  for (const int64_t i : index)
    require(i >= 0 && i < in_features(x) / channels, "pool: index out of range");
  require(factor.empty() ||
              (sum && (factor.size() + 1 == bounds.size() || factor.size() == index.size())),
          "pool: factors are for sums, one per output or one per tap");
  Op op(OpKind::kPool, {x});
  op.pool = mode, op.k = channels;
  const int64_t outputs = static_cast<int64_t>(bounds.size()) - 1;
  op.bounds = std::move(bounds), op.index = std::move(index), op.factor = std::move(factor);
  return add(std::move(op), outputs * channels);
}

namespace {

struct Pool : Rules<Pool> {
  static constexpr bool point_lanes = true;

  template <class P>
  static void call(const P& c) {
    c.kernels.pool(c.op.pool_args(), c.cols, c.x(), c.y);
  }

  static Function function(const Op& op) { return op.pool; }

  static void hessian(HessianSteps& to, const PointStep& from) {
    const cpu::PoolArgs args = from.op.pool_args();
    if (args.mode != cpu::Pool::kSum) to.refuse("maxima over several rows");
    if (args.factor != nullptr && args.per_tap) to.refuse("weighted sums over rows");
    std::vector<int64_t> list(args.bounds, args.bounds + args.outputs + 1);
    for (int64_t i = 0; i < args.bounds[args.outputs]; ++i)
      list.push_back(to.row(from.op.inputs[0]) + args.index[i] * args.channels);
    std::vector<double> factor(args.outputs, 1.0);
    if (args.factor != nullptr) factor.assign(args.factor, args.factor + args.outputs);
    hessian::Step& step = to.add(hessian::Kind::kSum, from);
    step.relu = 0, step.outer = to.narrow(args.outputs), step.k = to.narrow(args.channels);
    step.weight = to.add_constants(factor.data(), args.outputs);
    step.index = to.add_list(list);
  }

  template <class P>
  static void reverse(const P& p) {
    p.kernels.pool_reverse(p.op.pool_args(), p.cols, p.x(), p.dy, p.dx);
  }

  template <class P>
  static void tangent_forward(const P& p) {
    p.kernels.pool_tangent(p.op.pool_args(), p.cols, p.x(), p.rx, p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {  // same windows: linear almost everywhere
    p.kernels.pool_reverse(p.op.pool_args(), p.cols, p.x(), p.rdy, p.rdx);
  }
};

}  // namespace

const OpEntry ops::pool = make_entry<Pool>();

}  // namespace pylandscape
