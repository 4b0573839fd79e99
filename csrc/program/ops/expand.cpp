// expand: a value of parameters alone; feature f is element index[f] of a use in every column.
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

int OpList::expand(int64_t source, int64_t size, std::vector<int64_t> index) {
  Op op(OpKind::kExpand, {});
  op.weight = use(source, 1, size);
  for (const int64_t i : index) require(i >= 0 && i < size, "expand: index out of range");
  op.index = std::move(index);
  return add(std::move(op), static_cast<int64_t>(op.index.size()));
}

namespace {

struct Expand : Rules<Expand> {
  template <typename T>
  static void call(const Call<T>& c) {
    for (size_t f = 0; f < c.op.index.size(); ++f)
      c.kernels.fill_rows(1, c.cols, c.at.weight + c.op.index[f],
                          c.y + static_cast<int64_t>(f) * c.cols);
  }

  static void resident(ResidentStep& s) {
    s.gather();
    s.list.insert(s.list.end(), s.op.index.begin(), s.op.index.end());
    s.step.kind = resident::Kind::kExpand, s.step.weight = s.weight(s.op.weight);
  }

  static void lower(PointLowering& to, const Op& op) { to.add_parameter(op.weight, op); }

  // On a GPU, a bias without a product, and a copy where elements are used twice or in another order.
  static void hessian(HessianSteps& to, const PointStep& from) {
    std::vector<int64_t> index = from.key;
    int64_t count = 0;
    for (const int64_t i : index) count = std::max(count, i + 1);
    bool same = count == static_cast<int64_t>(index.size());
    for (size_t f = 0; f < index.size(); ++f) same = same && index[f] == static_cast<int64_t>(f);
    const int32_t first = to.narrow(to.take_rows(count));
    hessian::Step& s = to.add(hessian::Kind::kLinear, from, first);
    s.relu = 0, s.outer = 1, s.k = 0, s.m = to.narrow(count), s.x = hessian::kOnes;
    s.bias = to.source(from.bias, count), s.columns = to.narrow(from.columns());
    if (same) return to.place(from.op.output, first);
    for (int64_t& i : index) i += first;
    to.gather(from, index);
  }

  // Of points as lanes, the element differs from lane to lane.
  static void forward(const PointForward& p) {
    const int64_t lanes = p.tile.points.lanes;
    for (size_t f = 0; f < p.step.key.size(); ++f)
      for (int64_t s = 0; s < p.tile.block.samples; ++s)
        std::copy_n(p.source(p.step.bias + p.step.key[f]), lanes,
                    p.y + static_cast<int64_t>(f) * p.cols + s * lanes);
  }
  using Rules<Expand>::forward;
  static void reverse(const PointReverse&) {}  // its sums are those of Points
  static void tangent_forward(const PointTangentForward&) {}
  static void tangent_reverse(const PointTangentReverse&) {}

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    add_sums(p, p.dy, p.dw);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    for (int64_t f = 0; f < p.rows(); ++f)
      std::fill_n(p.ry + f * p.cols, p.cols, p.rw[p.op.index[f]]);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    add_sums(p, p.rdy, p.rdw);
  }

  template <typename T>
  static void add_sums(const Pass<T>& p, const T* dy, double* dw) {
    for (int64_t f = 0; dw != nullptr && f < p.rows(); ++f)
      p.kernels.row_sums_add(1, p.cols, dy + f * p.cols, dw + p.op.index[f]);
  }

  template <typename T>
  static void sample_gradients(const SampleGradients<T>& p) {
    const int64_t weight = p.offset(p.op.weight);
    for (int64_t c = 0; weight >= 0 && c < p.samples; ++c)
      for (int64_t f = 0; f < p.rows(); ++f)
        p.row(c)[weight + p.op.index[f]] += p.dy[f * p.cols + c];
  }
};

}  // namespace

const OpEntry ops::expand = make_entry<Expand>();

}  // namespace pylandscape
