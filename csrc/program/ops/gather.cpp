// gather: feature f is feature index[f] of the input, or a constant where that is -1.
#include "program/ops/entry.h"
#include "program/ops/parts.h"

namespace pylandscape {

int OpList::gather(int x, std::vector<int64_t> index, double fill) {
  Op op(OpKind::kGather, {x});
  for (const int64_t i : index)
    require(i >= -1 && i < in_features(x), "gather: index out of range");
  op.index = std::move(index), op.a = fill;
  return add(std::move(op), static_cast<int64_t>(op.index.size()));
}

namespace {

struct Gather : Rules<Gather> {
  template <typename T>
  static void call(const Call<T>& c) {
    gather_rows(c.op.index, c.cols, static_cast<T>(c.op.a), c.x(), c.y);
  }

  static void resident(ResidentStep& s) {
    s.gather();
    for (const int64_t from : s.op.index)
      s.list.push_back(from < 0 ? resident::kFill : s.row(s.op.inputs[0], from));
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    scatter_add(p.op, p.kernels, p.cols, p.dy, p.dx);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    gather_rows(p.op.index, p.cols, T(0), p.rx, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    scatter_add(p.op, p.kernels, p.cols, p.rdy, p.rdx);
  }
};

}  // namespace

const OpEntry ops::gather = make_entry<Gather>();

}  // namespace pylandscape
