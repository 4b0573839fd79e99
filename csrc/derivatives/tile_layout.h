// Which slots depend on theta, and where everything lies within a tile's buffers.
#pragma once
#include <algorithm>
#include <vector>

#include "program/op_list.h"

namespace pylandscape {

constexpr int64_t kTogether = 16;  // products with one weight that are summed at once, at most

struct TileLayout {
  TileLayout(const OpList& ops, int64_t tile, int64_t vector_length);

  std::vector<int64_t> row;       // first row of each slot but the data
  std::vector<int64_t> bent_row;  // of the outputs of ops that curve, in `first` and `curved`; or -1
  std::vector<bool> moves;        // whether a slot depends on theta
  std::vector<bool> transposed;   // uses whose transpose a reverse pass multiplies by
  std::vector<int64_t> columns_at, panels_at;  // by op; -1 where no weight of theta is multiplied by
  int64_t rows = 0, bent_rows = 0, columns = 0, panels = 0;  // sizes; the last two in elements
  // Of ops that multiply by the data: where their columns are, where all of these are given from
  // outside (Pass::data_columns); and whether else they take the data as they stand, so that nothing
  // is packed, nor kept in `columns`.
  std::vector<int64_t> data_at;
  std::vector<bool> direct;
  bool any_direct() const { return std::find(direct.begin(), direct.end(), true) != direct.end(); }
  int64_t most_columns = 0;  // elements that the tangents of one op take at once
  // Ops that multiply by one weight again and again (the steps of a recurrent network), by op: the
  // next of them or -1, how many come before, and where the first of them has room for the tangents
  // of kTogether inputs. Their products are summed together: next[i] is -1 and place[i] 0 of others.
  std::vector<int> next;
  std::vector<int64_t> place, room;
  bool alone(size_t op) const { return next[op] < 0 && place[op] == 0; }
};

}  // namespace pylandscape
