// concat: the inputs one after the other within each of `outer` groups, or given rows of them (join).
#include <algorithm>

#include "program/ops/entry.h"
#include "program/ops/parts.h"

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

struct Concat : Rules<Concat> {
  static constexpr bool point_lanes = true;

  template <typename T>
  static void call(const Call<T>& c) {
    each_part(c.op, c.program.slots(), [&](int slot, int64_t from, int64_t offset, int64_t rows) {
      std::copy_n(c.slots[slot] + from * c.cols, rows * c.cols, c.y + offset * c.cols);
    });
  }

  static void resident(ResidentStep& s) {
    s.gather();
    each_part(s.op, s.program.slots(), [&](int slot, int64_t from, int64_t, int64_t rows) {
      for (int64_t r = 0; r < rows; ++r) s.list.push_back(s.row(slot, from + r));
    });
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    add_parts(p, p.dy, p.adjoints);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    each_part(p.op, p.program.slots(), [&](int slot, int64_t from, int64_t offset, int64_t rows) {
      const T* r = p.at(p.values, slot);
      T* out = p.ry + offset * p.cols;
      if (r != nullptr) std::copy_n(r + from * p.cols, rows * p.cols, out);
      else std::fill_n(out, rows * p.cols, T(0));
    });
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    add_parts(p, p.rdy, p.tangents.adjoints);
  }

  template <typename T>
  static void add_parts(const Pass<T>& p, const T* dy, const Buffer<T>& adjoints) {
    each_part(p.op, p.program.slots(), [&](int slot, int64_t from, int64_t offset, int64_t rows) {
      T* to = p.at(adjoints, slot);
      if (to == nullptr) return;
      p.kernels.product_add(rows * p.cols, T(1), dy + offset * p.cols, nullptr, to + from * p.cols);
    });
  }
};

}  // namespace

const OpEntry ops::concat = make_entry<Concat>();

}  // namespace pylandscape
