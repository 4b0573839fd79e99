// linear: W x + b of each of `outer` groups of k rows; W is (m, k), or held as its transpose.
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

int OpList::linear(int x, int64_t outer, int64_t k, int64_t m, int64_t weight,
                       const int64_t* bias, int64_t first, bool transposed) {
  const bool whole = in_features(x) == outer * k;
  require(first >= 0 || whole, "linear: input features are not outer * k");
  require(first + outer * k <= in_features(x), "linear: rows that are not in the input");
  Op op(OpKind::kLinear, {x});
  if (!whole) op.rows = {{first, outer * k}};
  op.outer = outer, op.k = k, op.m = m;
  op.weight =
      use(weight, m, k, transposed ? Use::Packing::kTransposed : Use::Packing::kPanels);
  if (bias != nullptr) op.bias = use(*bias, 1, m);
  return add(std::move(op), outer * m);
}

namespace {

// The gradient of a weight (m, k): summed where it belongs, or, where the parameter holds the
// transpose, in rows of its own that are added transposed at the end.
class WeightSums {
 public:
  WeightSums(const Op& op, bool transposed, double* to)
      : m_(op.m), k_(op.k), to_(to), own_(transposed && to != nullptr ? op.m * op.k : 0) {}
  double* data() { return own_.empty() ? to_ : own_.data(); }
  void finish() {
    for (size_t i = 0; i < own_.size(); ++i) to_[i % k_ * m_ + i / k_] += own_[i];
  }

 private:
  int64_t m_, k_;
  double* to_;
  std::vector<double> own_;
};

struct Linear : Rules<Linear> {
  static constexpr bool point_lanes = true, combines = true;
  static bool takes_relu(const Op&) { return true; }
  static Columns columns(const Op& op) {
    return {op.outer, op.k, op.first(0), 0, 2, 1, op.outer * op.m};
  }

  template <typename T>
  static void call(const Call<T>& c) {
    const Op& op = c.op;
    for (int64_t o = 0; o < op.outer; ++o)
      c.kernels.linear(op.m, c.cols, op.k, c.at.weight, c.x() + (op.first(0) + o * op.k) * c.cols,
                       c.at.bias, op.relu, c.y + o * op.m * c.cols);
  }

  template <typename T>
  static void call_lanes(const Call<T>& c) {
    const Op& op = c.op;
    for (int64_t o = 0; o < op.outer; ++o)
      c.kernels.linear_lanes(op.m, c.cols / c.kernels.vector_length, op.k, c.at.weight,
                             c.x() + (op.first(0) + o * op.k) * c.cols, c.at.bias, op.relu,
                             c.y + o * op.m * c.cols);
  }

  static void resident(ResidentStep& s) {
    s.step.kind = resident::Kind::kLinear, s.step.m = static_cast<int32_t>(s.op.m);
    s.step.x = s.row(s.op.inputs[0], s.op.first(0));
    s.step.weight = s.weight(s.op.weight), s.step.bias = s.weight(s.op.bias);
  }

  // Group o of x; elements of its block of columns.
  template <typename T>
  static const T* group(const Pass<T>& p, const T* x, int64_t o) {
    return x + (p.op.first(0) + o * p.op.k) * p.cols;
  }
  template <typename T>
  static T* group(const Pass<T>& p, T* x, int64_t o) {
    return x + (p.op.first(0) + o * p.op.k) * p.cols;
  }
  template <typename T>
  static int64_t block(const Pass<T>& p) {
    return round_up(p.op.k, 2 * p.kernels.vector_length) * p.cols;
  }

  template <typename T>
  static void forward(const Forward<T>& p) {
    const Call<T> c = call_of(p);
    call(c);
    for (int64_t o = 0; p.packs_forward() && o < p.op.outer; ++o)
      p.kernels.pack_columns(p.op.k, p.cols, group(p, c.x(), o),
                             p.to.columns.data() + p.layout.columns_at[p.number] + o * block(p));
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {  // dW = dy x^T, db = dy 1, dx = W^T dy
    const Op& op = p.op;
    WeightSums sums(op, p.program.uses()[op.weight].transposed(), p.dw);
    for (int64_t o = 0; o < op.outer; ++o) {
      const T* d = p.dy + o * op.m * p.cols;
      if (p.multiplies()) {
        T* to = p.panels + p.layout.panels_at[p.number] + o * op.m * p.cols;
        p.kernels.pack(op.m, p.cols, d, to);
        const int64_t at = p.packs_late() ? 0 : o * block(p);
        if (p.packs_late()) p.kernels.pack_columns(op.k, p.cols, group(p, p.x(), o), p.late_columns);
        if (p.dw != nullptr)
          p.kernels.outer_add(op.m, op.k, p.cols, to, p.columns() + at, sums.data());
      }
      if (p.db != nullptr) p.kernels.row_sums_add(op.m, p.cols, d, p.db);
      if (p.dx != nullptr)
        p.kernels.linear_add(op.k, p.cols, op.m, p.transposed(p.theta), d, group(p, p.dx, o));
    }
    sums.finish();
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {  // Ry = V x + W Rx + Rb
    const Op& op = p.op;
    for (int64_t o = 0; o < op.outer; ++o) {
      T* out = p.ry + o * op.m * p.cols;
      if (p.rw != nullptr)
        p.kernels.linear(op.m, p.cols, op.k, p.rw, group(p, p.x(), o), p.rb, false, out);
      if (p.rx == nullptr && p.rw == nullptr)
        for (int64_t r = 0; r < op.m; ++r)
          std::fill_n(out + r * p.cols, p.cols, p.rb != nullptr ? p.rb[r] : T(0));
      if (p.rx != nullptr && p.rw != nullptr)
        p.kernels.linear_add(op.m, p.cols, op.k, p.weight(), group(p, p.rx, o), out);
      if (p.rx != nullptr && p.rw == nullptr)
        p.kernels.linear(op.m, p.cols, op.k, p.weight(), group(p, p.rx, o), p.rb, false, out);
    }
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    // R(dW) = R(dy) x^T + dy Rx^T; R(dx) = W^T R(dy) + V^T dy.
    const Op& op = p.op;
    WeightSums sums(op, p.program.uses()[op.weight].transposed(), p.rdw);
    for (int64_t o = 0; o < op.outer; ++o) {
      const T *d = p.dy + o * op.m * p.cols, *rd = p.rdy + o * op.m * p.cols;
      if (p.rdw != nullptr) {
        p.kernels.pack(op.m, p.cols, rd, p.own_panels);
        p.kernels.outer_add(op.m, op.k, p.cols, p.own_panels, p.columns() + o * block(p),
                            sums.data());
        if (p.rx != nullptr) {
          const T* panels = p.primal.panels.data() + p.layout.panels_at[p.number];
          p.kernels.pack_columns(op.k, p.cols, group(p, p.rx, o), p.own_columns);
          p.kernels.outer_add(op.m, op.k, p.cols, panels + o * op.m * p.cols, p.own_columns,
                              sums.data());
        }
      }
      if (p.rdb != nullptr) p.kernels.row_sums_add(op.m, p.cols, rd, p.rdb);
      if (p.rdx == nullptr) continue;
      p.kernels.linear_add(op.k, p.cols, op.m, p.transposed(p.theta), rd, group(p, p.rdx, o));
      if (p.rdw != nullptr)
        p.kernels.linear_add(op.k, p.cols, op.m, p.transposed(p.v), d, group(p, p.rdx, o));
    }
    sums.finish();
  }

  template <typename T>
  static void sample_gradients(const SampleGradients<T>& p) {
    const Op& op = p.op;
    const int64_t weight = p.offset(op.weight), bias = p.offset(op.bias);
    const bool transposed = p.program.uses()[op.weight].transposed();
    const int64_t row_step = transposed ? 1 : op.k, step = transposed ? op.m : 1;
    for (int64_t c = 0; c < p.samples; ++c)
      for (int64_t o = 0; o < op.outer; ++o)
        for (int64_t r = 0; r < op.m; ++r) {
          T* row = p.row(c);
          const T d = p.dy[(o * op.m + r) * p.cols + c];
          if (bias >= 0) row[bias + r] += d;
          if (weight < 0 || d == T(0)) continue;
          const T* from = group(p, p.x(), o) + c;
          T* to = row + weight + r * row_step;
          for (int64_t f = 0; f < op.k; ++f) to[f * step] += d * from[f * p.cols];
        }
  }
};

}  // namespace

const OpEntry ops::linear = make_entry<Linear>();

}  // namespace pylandscape
