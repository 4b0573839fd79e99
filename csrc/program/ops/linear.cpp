// linear: W x + b of each of `outer` groups of k rows; W is (m, k), or held as its transpose.
#include <algorithm>

#include "derivatives/weight_sums.h"
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

// Some products dy x^T of one weight, to be summed at once.
template <typename T>
struct OuterSum {
  const T *dy[2 * kTogether], *x[2 * kTogether];
  int64_t count = 0;
  void take(const T* panels, const T* columns) { dy[count] = panels, x[count++] = columns; }
};

struct Linear : Rules<Linear> {
  static constexpr bool point_lanes = true, combines = true;
  static bool takes_relu(const Op&) { return true; }
  static Columns columns(const Op& op) {
    return {op.outer, op.k, op.first(0), 0, 2, std::min(op.outer, kTogether), op.outer * op.m};
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

  static void lower(PointLowering& to, const Op& op) {
    PointStep step(op);
    const bool transposed = to.use(op.weight).transposed();
    step.weight = to.place(op.weight), step.weight_moves = to.moves(op.weight);
    step.bias = to.place(op.bias), step.bias_moves = to.moves(op.bias);
    step.row = transposed ? 1 : op.k, step.column = transposed ? op.m : 1;
    step.first = op.first(0), step.k = op.k, step.group = op.m;
    for (int64_t r = 0; r < op.outer * op.m; ++r) step.key.push_back(r % op.m);
    to.add(std::move(step));
  }

  static void hessian(HessianSteps& to, const PointStep& from) {
    const Op& op = from.op;
    hessian::Step& s = to.add(hessian::Kind::kLinear, from);
    s.x = to.narrow(s.x + from.first), s.m = to.narrow(op.m);
    s.weight = to.source(from.weight, op.m * op.k), s.bias = to.source(from.bias, op.m);
    s.row = to.narrow(from.row), s.column = to.narrow(from.column);
    s.inputs = from.weight_moves ? s.k : 0, s.columns = to.narrow(from.columns());
  }

  // Of points as lanes: a weight of its own for each.
  static void forward(const PointForward& p) {
    multiply(p, p.x(), p.source(p.step.bias), p.op.relu, nullptr, p.y);
  }
  static void tangent_forward(const PointTangentForward& p) {
    multiply(p, p.rx, nullptr, false, p.op.relu ? p.y() : nullptr, p.ry);
  }
  static void reverse(const PointReverse& p) { multiply_transposed(p, p.dy, p.dx); }
  static void tangent_reverse(const PointTangentReverse& p) {
    multiply_transposed(p, p.rdy, p.rdx);
  }
  static void multiply(const PointPass& p, const double* x, const double* bias, bool relu,
                       const double* mask, double* y) {
    const PointStep& s = p.step;
    const int64_t m = p.op.m;
    for (int64_t o = 0; o < p.op.outer; ++o) {
      const int64_t to = o * m * p.cols;
      p.tile.points.linear(m, p.tile.block.samples, s.k, p.source(s.weight), s.row, s.column,
                           x + (s.first + o * s.k) * p.cols, bias, relu, false,
                           mask != nullptr ? mask + to : nullptr, y + to);
    }
  }
  static void multiply_transposed(const PointPass& p, const double* dy, double* dx) {
    const PointStep& s = p.step;
    const int64_t m = p.op.m;
    for (int64_t o = 0; o < p.op.outer; ++o) {
      const int64_t to = (s.first + o * s.k) * p.cols;
      p.tile.points.linear(s.k, p.tile.block.samples, m, p.source(s.weight), s.column, s.row,
                           dy + o * m * p.cols, nullptr, false, !s.alone,
                           s.masks ? p.x() + to : nullptr, dx + to);
    }
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

  // y = W x + b for those rows of group o of y, which has `rows`; x has `depth`. Or y += W x.
  template <typename T>
  struct Product {
    const Pass<T>& p;
    int64_t rows, depth, o, first, last;
    void set(const T* w, const T* x, const T* bias, bool relu, T* y) const {
      p.kernels.linear(last - first, p.cols, depth, w + first * depth, x + o * depth * p.cols,
                       bias != nullptr ? bias + first : nullptr, relu, at(y));
    }
    void add(const T* w, const T* x, T* y) const {
      p.kernels.linear_add(last - first, p.cols, depth, w + first * depth, x + o * depth * p.cols,
                           at(y));
    }
    T* at(T* y) const { return y + (o * rows + first) * p.cols; }
  };
  // f(Product) for the rows, in whole panels, of every group of a result with `rows` rows.
  template <typename T, typename F>
  static void each_product(const Pass<T>& p, int64_t rows, int64_t depth, F f) {
    const int64_t outer = p.op.outer, work = rows * depth * p.cols;
    if (outer > 1)
      return p.share(outer, work, [&](int64_t first, int64_t last) {
        for (int64_t o = first; o < last; ++o) f(Product<T>{p, rows, depth, o, 0, rows});
      });
    const cpu::PanelSplit split(rows, p.kernels.panel_rows);
    p.share(split.panels, work / split.panels, [&](int64_t first, int64_t last) {
      f(Product<T>{p, rows, depth, 0, split.first(first), split.first(last)});
    });
  }
  // multiply(Product) with W^T for every group of the adjoints dy; as these are read then: their
  // panels, their sums for the bias. Either is null where it is not asked for.
  template <typename T, typename F>
  static void each_adjoint(const Pass<T>& p, const T* dy, T* packed, double* db, F multiply) {
    const Op& op = p.op;
    const bool sums_apart = p.shares(op.outer * op.m * op.k * p.cols);  // in the order of the groups
    each_product(p, op.k, op.m, [&](const Product<T>& product) {
      const T* d = dy + product.o * op.m * p.cols;
      if (product.first == 0) {
        if (packed != nullptr)
          p.kernels.pack(op.m, p.cols, d, panels(p, packed, p.number, product.o));
        if (db != nullptr && !sums_apart) p.kernels.row_sums_add(op.m, p.cols, d, db);
      }
      multiply(product);
    });
    if (db == nullptr || !sums_apart) return;
    p.share(op.m, op.outer * p.cols, [&](int64_t first, int64_t last) {
      for (int64_t o = 0; o < op.outer; ++o)
        p.kernels.row_sums_add(last - first, p.cols, dy + (o * op.m + first) * p.cols, db + first);
    });
  }
  // Groups first .. last - 1 of x, as blocks of columns one after the other.
  template <typename T>
  static void pack_groups(const Pass<T>& p, const T* x, int64_t from, int64_t count, T* to) {
    p.share(count, p.op.k * p.cols, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        p.kernels.pack_columns(p.op.k, p.cols, group(p, x, from + i), to + i * block(p));
    });
  }

  template <typename T>
  static void forward(const Forward<T>& p) {
    const Op& op = p.op;
    const Call<T> c = call_of(p);
    const T* x = group(p, c.x(), 0);
    each_product(p, op.m, op.k, [&](const auto& product) {
      product.set(c.at.weight, x, c.at.bias, op.relu, c.y);
    });
    if (p.packs_forward())
      pack_groups(p, c.x(), 0, op.outer, p.to.columns.data() + p.layout.columns_at[p.number]);
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {  // dW = dy x^T, db = dy 1, dx = W^T dy
    const Op& op = p.op;
    T* dx = p.dx != nullptr ? group(p, p.dx, 0) : nullptr;
    each_adjoint<T>(p, p.dy, p.multiplies() ? p.panels : nullptr, p.db, [&](const auto& product) {
      if (dx != nullptr) product.add(p.transposed(p.theta), p.dy, dx);
    });
    if (p.dw == nullptr || !p.multiplies()) return;
    if (p.direct()) {
      add_directly(p, panels(p, p.panels, p.number, 0), p.dw);
    } else if (p.sums_alone()) {
      for (int64_t o = 0; o < op.outer; o += kTogether) {
        OuterSum<T> sum;
        const int64_t last = std::min(op.outer, o + kTogether);
        if (p.packs_late()) pack_groups(p, p.x(), o, last - o, p.late_columns);
        for (int64_t i = o; i < last; ++i)
          sum.take(panels(p, p.panels, p.number, i),
                   p.columns() + (p.packs_late() ? i - o : i) * block(p));
        add(p, sum, p.dw);
      }
    } else if (p.layout.place[p.number] % kTogether == 0) {  // the first of some: all are there
      OuterSum<T> sum;
      each_mate(p, [&](size_t i) { sum.take(panels(p, p.panels, i, 0), p.kept_columns(i)); });
      add(p, sum, p.dw);
    }
  }

  // Where the adjoints of an op's group o are, as panels.
  template <typename T, typename P>
  static P* panels(const Pass<T>& p, P* all, size_t number, int64_t o) {
    return all + p.layout.panels_at[number] + o * p.op.m * p.cols;
  }
  // g(weight) += a sum of products.
  template <typename T>
  static void add(const Pass<T>& p, const OuterSum<T>& sum, double* g) {
    const Op& op = p.op;
    WeightSums sums(op, p.program.uses()[op.weight].transposed(), g);
    int64_t cols[2 * kTogether];
    std::fill_n(cols, sum.count, p.cols);
    const int64_t width = 2 * p.kernels.vector_length;  // of a block of columns
    p.share((op.k + width - 1) / width, op.m * width * p.cols * sum.count,
            [&](int64_t first, int64_t last) {
              const int64_t from = first * width, to = std::min(op.k, last * width);
              const T* x[2 * kTogether];
              for (int64_t i = 0; i < sum.count; ++i) x[i] = sum.x[i] + from * p.cols;
              p.kernels.outer_add(op.m, to - from, op.k, sum.count, cols, sum.dy, x,
                                  sums.data() + from);
            });
    sums.finish();
  }
  // g(weight) += dy x^T of the data as they stand, or that later.
  template <typename T>
  static void add_directly(const Pass<T>& p, const T* dy, double* g) {
    const DirectSum<T> sum{p.number, dy, g};
    if (p.waiting != nullptr)
      p.waiting->push_back(sum);
    else
      add_direct_sums(p.program, p.kernels, p.data, p.cols, {sum});
  }
  // f(op) for this one and those after it whose products are summed with its.
  template <typename T, typename F>
  static void each_mate(const Pass<T>& p, F f) {
    int i = static_cast<int>(p.number);
    for (int64_t count = 0; count < kTogether && i >= 0; ++count, i = p.layout.next[i])
      f(static_cast<size_t>(i));
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {  // Ry = V x + W Rx + Rb
    const Op& op = p.op;
    const T* x = group(p, p.x(), 0);
    const T* rx = p.rx != nullptr ? group(p, p.rx, 0) : nullptr;
    if (rx == nullptr && p.rw == nullptr) {
      for (int64_t r = 0; r < op.outer * op.m; ++r)
        std::fill_n(p.ry + r * p.cols, p.cols, p.rb != nullptr ? p.rb[r % op.m] : T(0));
      return;
    }
    each_product(p, op.m, op.k, [&](const auto& product) {
      if (p.rw != nullptr) product.set(p.rw, x, p.rb, false, p.ry);
      if (rx != nullptr && p.rw != nullptr) product.add(p.weight(), rx, p.ry);
      if (rx != nullptr && p.rw == nullptr) product.set(p.weight(), rx, p.rb, false, p.ry);
    });
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    // R(dW) = R(dy) x^T + dy Rx^T; R(dx) = W^T R(dy) + V^T dy.
    T* rdx = p.rdx != nullptr ? group(p, p.rdx, 0) : nullptr;
    each_adjoint<T>(p, p.rdy, p.rdw != nullptr ? p.own_panels : nullptr, p.rdb,
                    [&](const auto& product) {
                      if (rdx == nullptr) return;
                      product.add(p.transposed(p.theta), p.rdy, rdx);
                      if (p.rdw != nullptr) product.add(p.transposed(p.v), p.dy, rdx);
                    });
    if (p.rdw != nullptr) add_weights(p);
  }

  template <typename T>
  static double form(const TangentReverse<T>& p) {  // <dy, 2 V Rx>
    const Op& op = p.op;
    if (p.rx == nullptr || p.along(op.weight) == nullptr) return 0;
    const T* rx = group(p, p.rx, 0);
    each_product(p, op.m, op.k, [&](const auto& product) {
      product.set(p.along(op.weight), rx, nullptr, false, p.rdy);
    });
    return 2 * p.dot(p.size(), p.rdy, p.dy);
  }

  // R(dW): of all groups, or, at the first of some ops with one weight, of all these. R(dy) is in
  // own_panels.
  template <typename T>
  static void add_weights(const TangentReverse<T>& p) {
    const Op& op = p.op;
    const bool late = p.packs_late();
    const T* adjoints = late ? p.late_panels : p.primal.panels.data();
    if (late && p.rx != nullptr)
      for (int64_t o = 0; o < op.outer; ++o)
        p.kernels.pack(op.m, p.cols, p.dy + o * op.m * p.cols, panels(p, p.late_panels, p.number, o));
    if (p.direct()) return add_directly<T>(p, panels(p, p.own_panels, p.number, 0), p.rdw);
    if (p.sums_alone()) {
      for (int64_t o = 0; o < op.outer; o += kTogether) {
        OuterSum<T> sum;
        const int64_t last = std::min(op.outer, o + kTogether);
        if (late) pack_groups(p, p.x(), o, last - o, p.late_columns);
        if (p.rx != nullptr) pack_groups(p, p.rx, o, last - o, p.own_columns);
        for (int64_t i = o; i < last; ++i) {
          sum.take(panels(p, p.own_panels, p.number, i), p.columns() + (late ? i - o : i) * block(p));
          if (p.rx != nullptr)
            sum.take(panels(p, adjoints, p.number, i), p.own_columns + (i - o) * block(p));
        }
        add(p, sum, p.rdw);
      }
      return;
    }
    const auto columns = [&](size_t i) {
      return p.own_columns + p.layout.room[i] + p.layout.place[i] % kTogether * block(p);
    };
    if (p.rx != nullptr)
      p.kernels.pack_columns(op.k, p.cols, group(p, p.rx, 0), columns(p.number));
    if (p.layout.place[p.number] % kTogether != 0) return;
    OuterSum<T> sum;
    each_mate(p, [&](size_t i) {
      sum.take(panels(p, p.own_panels, i, 0), p.kept_columns(i));
      if (p.r_of(i) != nullptr) sum.take(panels(p, adjoints, i, 0), columns(i));
    });
    add(p, sum, p.rdw);
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
