// concat: the inputs one after the other within each of `outer` groups, or given rows of them (join).
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

int OpList::concat(const std::vector<int>& inputs, int64_t outer) {
  require(!inputs.empty() && outer > 0, "concat: nothing to concatenate");
  Op op(OpKind::kConcat, inputs);
  op.outer = outer;
  int64_t features = 0;
  for (const int x : inputs) {
    require(in_features(x) % outer == 0, "concat: features are not a multiple of outer");
    features += in_features(x);
  }
  return add(std::move(op), features);
}

int OpList::join(const std::vector<int>& inputs, std::vector<Rows> rows) {
  require(!inputs.empty() && inputs.size() == rows.size(), "join: one range of rows per input");
  Op op(OpKind::kConcat, inputs);
  int64_t features = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    require(rows[i].first >= 0 && rows[i].count >= 0 &&
                rows[i].first + rows[i].count <= in_features(inputs[i]),
            "join: rows that are not in the input");
    features += rows[i].count;
  }
  op.rows = std::move(rows);
  return add(std::move(op), features);
}

namespace {

// f(input, its first row, offset in the output, rows) for the parts of a concatenation, in order;
// features: of all slots.
template <typename F>
void each_part(const Op& op, const std::vector<int64_t>& features, F f) {
  int64_t offset = 0;
  for (size_t i = 0; i < op.rows.size(); ++i) {
    f(i, op.rows[i].first, offset, op.rows[i].count);
    offset += op.rows[i].count;
  }
  if (!op.rows.empty()) return;
  for (int64_t o = 0; o < op.outer; ++o)
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const int64_t rows = features[op.inputs[i]] / op.outer;
      f(i, o * rows, offset, rows);
      offset += rows;
    }
}

struct Concat : Rules<Concat> {
  static constexpr bool point_lanes = true;

  template <class P>
  static void call(const P& c) {
    each_part(c.op, c.features(), [&](size_t i, int64_t from, int64_t offset, int64_t rows) {
      std::copy_n(c.x(i) + from * c.cols, rows * c.cols, c.y + offset * c.cols);
    });
  }

  static void resident(ResidentStep& s) {
    s.gather();
    each_part(s.op, s.program.slots(), [&](size_t i, int64_t from, int64_t, int64_t rows) {
      for (int64_t r = 0; r < rows; ++r) s.list.push_back(s.row(s.op.inputs[i], from + r));
    });
  }

  static void hessian(HessianSteps& to, const PointStep& step) {
    std::vector<int64_t> index;
    each_part(step.op, to.features(), [&](size_t i, int64_t from, int64_t, int64_t rows) {
      for (int64_t r = 0; r < rows; ++r) index.push_back(to.row(step.op.inputs[i]) + from + r);
    });
    to.gather(step, index);
  }

  template <class P>
  static void reverse(const P& p) {
    add_parts(p, p.dy, [&](size_t i) { return p.d(i); });
  }

  template <class P>
  static void tangent_forward(const P& p) {
    each_part(p.op, p.features(), [&](size_t i, int64_t from, int64_t offset, int64_t rows) {
      const auto* r = p.r(i);
      auto* out = p.ry + offset * p.cols;
      if (r != nullptr) std::copy_n(r + from * p.cols, rows * p.cols, out);
      else std::fill_n(out, rows * p.cols, 0);
    });
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    add_parts(p, p.rdy, [&](size_t i) { return p.rd(i); });
  }

  // adjoint(i): of an input, += its part of dy.
  template <class P, typename T, typename F>
  static void add_parts(const P& p, const T* dy, F adjoint) {
    each_part(p.op, p.features(), [&](size_t i, int64_t from, int64_t offset, int64_t rows) {
      T* to = adjoint(i);
      if (to == nullptr) return;
      p.kernels.product_add(rows * p.cols, 1, dy + offset * p.cols, nullptr, to + from * p.cols);
    });
  }
};

}  // namespace

const OpEntry ops::concat = make_entry<Concat>();

}  // namespace pylandscape
