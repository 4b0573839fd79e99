// cell: one step of an LSTM or a GRU, from the products of its input and of its last hidden state.
#include "program/ops/entry.h"

namespace pylandscape {

int OpList::cell(cpu::Cell kind, int64_t hidden, int x, int h, int state, int64_t first) {
  const int64_t gates = cpu::cell_gates(kind) * hidden;
  require(hidden > 0 && in_features(x) == gates && in_features(h) == gates,
          "cell: the products do not have one row per gate and unit");
  require(first >= 0 && first + hidden <= in_features(state), "cell: the state is not in its slot");
  Op op(OpKind::kCell, {x, h, state});
  op.cell = kind, op.k = hidden;
  op.rows = {{0, gates}, {0, gates}, {first, hidden}};
  return add(std::move(op), kind == cpu::Cell::kLstm ? 2 * hidden : hidden);
}

namespace {

struct Cell : Rules<Cell> {
  static constexpr const char* no_points = "recurrent cells";
  static Function function(const Op& op) { return op.cell; }
  template <typename T>
  static void call(const Call<T>& c) {
    c.kernels.cell(c.op.cell, c.op.k, c.cols,
                   {c.x(0), c.x(1), c.x(2) + c.op.first(2) * c.cols}, c.y);
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    p.kernels.cell_reverse(p.op.cell, p.op.k, p.cols, values(p), p.dy, inputs(p, p.adjoints));
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    p.kernels.cell_tangent(p.op.cell, p.op.k, p.cols, values(p), fixed(inputs(p, p.values)), p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    p.kernels.cell_reverse_tangent(p.op.cell, p.op.k, p.cols, values(p),
                                   fixed(inputs(p, p.tangents.values)), p.dy, p.rdy,
                                   inputs(p, p.tangents.adjoints));
  }

  // The inputs at theta.
  template <typename T>
  static cpu::CellInputs<const T> values(const Pass<T>& p) {
    return {p.x(0), p.x(1), p.x(2) + p.op.first(2) * p.cols};
  }
  // Their tangents or adjoints; null where they do not move.
  template <typename T>
  static cpu::CellInputs<T> inputs(const Pass<T>& p, const Buffer<T>& rows) {
    T* state = p.at(rows, p.op.inputs[2]);
    return {p.at(rows, p.op.inputs[0]), p.at(rows, p.op.inputs[1]),
            state == nullptr ? nullptr : state + p.op.first(2) * p.cols};
  }
  template <typename T>
  static cpu::CellInputs<const T> fixed(cpu::CellInputs<T> r) {
    return {r.x, r.h, r.state};
  }
};

}  // namespace

const OpEntry ops::cell = make_entry<Cell>();

}  // namespace pylandscape
