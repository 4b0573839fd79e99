// One op of a network: its kind, the slots that it reads and writes, its parameters and its shape.
#pragma once
#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "cpu/kernels.h"

namespace pylandscape {

// Every op once: OpKind::k<Kind>, and its name, which is that of its file (program/ops/<name>.cpp)
// and what Python calls it. The enum and the table of ops (program/ops/table.cpp) are made from
// this list, so that neither can miss one or have another order.
#define PYLANDSCAPE_EACH_OP(X) \
  X(Linear, linear)            \
  X(Unary, unary)              \
  X(Binary, binary)            \
  X(LayerNorm, layer_norm)     \
  X(Softmax, softmax)          \
  X(Concat, concat)            \
  X(Expand, expand)            \
  X(Gather, gather)            \
  X(Conv, conv)                \
  X(BatchNorm, batch_norm)     \
  X(Pool, pool)                \
  X(Matmul, matmul)            \
  X(GroupNorm, group_norm)     \
  X(Embedding, embedding)      \
  X(Cell, cell)                \
  X(Lookup, lookup)            \
  X(Dropout, dropout)          \
  X(Attention, attention)

enum class OpKind : int {
#define PYLANDSCAPE_KIND(Kind, name) k##Kind,
  PYLANDSCAPE_EACH_OP(PYLANDSCAPE_KIND)
#undef PYLANDSCAPE_KIND
};
#define PYLANDSCAPE_ONE(Kind, name) +1
constexpr int kOpKinds = 0 PYLANDSCAPE_EACH_OP(PYLANDSCAPE_ONE);
#undef PYLANDSCAPE_ONE

// Batch norm with given statistics, as uses: (x - mean) / sqrt(variance + eps) * gain + shift; or
// with the batch's own, which may be kept: sources in theta that Question::collect fills.
struct Norm {
  int gain = -1, shift = -1, mean = -1, variance = -1;
  double eps = 0;
  bool own = false;
  int64_t keep_mean = -1, keep_variance = -1;
  double momentum = 0.1;  // of the kept ones in training; negative: cumulative averages
  bool on() const { return mean >= 0; }
};

// Some consecutive rows of a slot.
struct Rows {
  int64_t first, count;
};

// Which of its functions an op computes, where it has several.
using Function = std::variant<std::monostate, cpu::Unary, cpu::Binary, cpu::Pool, cpu::Cell>;

struct Op {
  Op(OpKind op_kind, std::vector<int> slots) : kind(op_kind), inputs(std::move(slots)) {}
  OpKind kind;
  std::vector<int> inputs;  // slots; of a conv, the second is added to the result
  int output = -1;          // slot
  int weight = -1, bias = -1;  // uses
  // lookup: the embedding (weight) and a linear op's weight, transposed; which of the tables
  int second = -1, table = -1;
  cpu::Unary unary{};
  cpu::Binary binary{};
  cpu::Cell cell{};
  bool relu = false;  // max(., 0) at the end
  bool log = false;   // softmax
  double a = 0, b = 0;
  // linear: (outer, k) -> (outer, m); layer_norm: (outer, k); softmax: (outer, k, inner);
  // group_norm: `outer` groups of k rows at `inner` pixels;
  // concat: outer groups of the inputs' features one after the other.
  // embedding: a weight (m, k), one row of it for each of index's rows; b = the row that gets no
  // derivative, or -1. cell: k = hidden size.
  int64_t outer = 1, k = 0, m = 0, inner = 1;
  // expand: feature f is element index[f] of the weight use. gather: feature index[f] of the input,
  // or the constant `a` where that is -1. pool: see cpu::PoolArgs; k channels. softmax: bounds are
  // how many of each group's rows take part.
  // embedding: the rows of the data that hold its ids. dropout: which of a sample's k numbers decides
  // over each row; a = the rate, b = its
  // quantile, inner = which of the network's dropouts it is.
  std::vector<int64_t> index, bounds;
  std::vector<double> factor;
  cpu::Pool pool{};
  // matmul: scale `a`; the first rows of each of `outer` are in x_, y_ and z_outer.
  cpu::MatmulArgs strides{};
  std::vector<int64_t> x_outer, y_outer, z_outer;
  bool repeats[2] = {};  // whether it reads a row of x, of y, more than once
  cpu::MatmulArgs matmul() const {
    cpu::MatmulArgs found = strides;
    found.x_outer = x_outer.data(), found.y_outer = y_outer.data(), found.z_outer = z_outer.data();
    return found;
  }
  // linear, concat (of outer = 1), cell: each input's first row, and how many; empty means whole.
  std::vector<Rows> rows;
  cpu::ConvArgs conv{};
  Norm norm;  // batch_norm over (outer, k); conv: after it
  // attention: the ops that it stands for, in order; bounds: of softmax.
  std::vector<Op> parts;
  cpu::AttentionArgs attention() const;

  cpu::NormArgs norm_args() const {
    const bool groups = kind == OpKind::kGroupNorm;
    return {outer, k, a, groups ? inner : 1, groups};
  }
  cpu::PoolArgs pool_args() const {
    return {pool,          static_cast<int64_t>(bounds.size()) - 1,          k,
            bounds.data(), index.data(), factor.empty() ? nullptr : factor.data(),
            factor.size() + 1 != bounds.size()};
  }
  int64_t first(size_t input) const { return rows.empty() ? 0 : rows[input].first; }
  template <typename F>
  void each_use(F f) const {
    for (const int use : {weight, bias, second, norm.gain, norm.shift, norm.mean, norm.variance})
      if (use >= 0) f(use);
  }
};

// One parameter as one kind of op reads it. source >= 0: offset in theta; source < 0: offset
// -1 - source in the constants.
struct Use {
  int64_t source, rows, cols;
  // kTransposed: as kPanels, but the source holds the transpose (cols, rows). kColumns: the
  // transpose as it stands.
  enum class Packing { kPlain, kPanels, kConv, kTransposed, kColumns } packing;
  int64_t packed;        // offset in the packed vector, a multiple of 16
  cpu::ConvArgs conv{};  // kConv: of which only groups, channels, rows and kernel count
  int64_t size() const { return rows * cols; }
  bool transposed() const { return packing == Packing::kTransposed; }
};

}  // namespace pylandscape
