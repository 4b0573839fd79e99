#include "derivatives/tile_layout.h"

#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

namespace {

// Of a wider weight the sums lie too far apart to go through all of its rows for each block of data.
constexpr int64_t kDirectRows = 128;

// Whether op i multiplies by the data with a weight of theta, each for itself alone, so that its
// product dy x^T can take them as they stand.
bool takes_data_directly(const OpList& program, size_t i, int64_t tile) {
  const std::vector<Op>& ops = program.ops();
  const Op& op = ops[i];
  if (op.kind != OpKind::kLinear || op.inputs[0] != 0 || op.outer != 1) return false;
  if (op.m > kDirectRows || tile > cpu::kDirectColumns) return false;
  if (!program.in_theta(op.weight)) return false;
  const auto columns = entry(op.kind).columns;
  return std::none_of(ops.begin(), ops.end(), [&](const Op& other) {
    if (&other == &op) return false;
    return other.weight == op.weight || (other.kind == op.kind && other.inputs == op.inputs &&
                                         columns(other).same_input(columns(op)));
  });
}

}  // namespace

TileLayout::TileLayout(const OpList& program, int64_t tile, int64_t vector_length)
    : row(program.slots().size(), -1),
      bent_row(program.slots().size(), -1),
      moves(program.slots().size(), false),
      transposed(program.uses().size(), false),
      columns_at(program.ops().size(), -1),
      panels_at(program.ops().size(), -1),
      data_at(program.ops().size(), -1),
      direct(program.ops().size(), false),
      next(program.ops().size(), -1),
      place(program.ops().size(), 0),
      room(program.ops().size(), 0) {
  const std::vector<Op>& ops = program.ops();
  int64_t data_columns = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    const Op& op = ops[i];
    const OpEntry& own = entry(op.kind);
    const int64_t features = program.features(op.output);
    row[op.output] = rows;
    rows += features;
    bool moved = std::any_of(op.inputs.begin(), op.inputs.end(),
                             [&](int s) { return bool(moves[s]); });
    op.each_use([&](int use) { moved = moved || program.in_theta(use); });
    moves[op.output] = moved;
    if (own.curves && moved) {
      bent_row[op.output] = bent_rows;
      bent_rows += features;
    }
    if (own.columns == nullptr) continue;
    if (moves[op.inputs[0]]) transposed[op.weight] = true;
    if (!program.in_theta(op.weight)) continue;
    const Columns found = own.columns(op);
    if (found.panel_rows > 0) {
      panels_at[i] = panels;
      panels += found.panel_rows * tile;
    }
    for (size_t j = 0; j < i; ++j) {  // several ops may read the same slot (q, k, v)
      const Op& other = ops[j];
      if (columns_at[j] < 0 || other.kind != op.kind || other.inputs != op.inputs) continue;
      if (!own.columns(other).same_input(found)) continue;
      columns_at[i] = columns_at[j], data_at[i] = data_at[j];
    }
    const int64_t size = round_up(found.k, found.vectors * vector_length) * tile;
    most_columns = std::max(most_columns, found.at_once * size);
    if (found.count == 1 && found.panel_rows > 0) {
      for (size_t j = i; j-- > 0;) {
        if (panels_at[j] < 0 || ops[j].weight != op.weight || ops[j].outer != 1) continue;
        next[j] = static_cast<int>(i), place[i] = place[j] + 1;
        break;
      }
    }
    if (columns_at[i] >= 0) continue;
    direct[i] = takes_data_directly(program, i, tile);
    if (op.inputs[0] == 0) {
      data_at[i] = data_columns;
      data_columns += found.count * size;
    }
    columns_at[i] = columns;
    if (!direct[i]) columns += found.count * size;
  }
  for (size_t i = 0; i < ops.size(); ++i) {
    if (alone(i) || place[i] > 0) continue;
    const Columns found = entry(ops[i].kind).columns(ops[i]);
    for (int j = static_cast<int>(i); j >= 0; j = next[j]) room[j] = most_columns;
    most_columns += kTogether * round_up(found.k, found.vectors * vector_length) * tile;
  }
}

}  // namespace pylandscape
