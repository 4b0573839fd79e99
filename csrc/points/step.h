// One op of Points on rows of lanes, and where the rows of a worker lie.
#pragma once
#include <utility>
#include <vector>

#include "program/buffer.h"
#include "program/op.h"

namespace pylandscape {

struct PointPasses;  // program/ops/entry.h

// Inputs and output are slots of Points, of which there are more than of the Program. Parameters
// are those of a linear op: row r of its output is the product of row key[r] of the weight with the
// k rows of its input from first + r / group * k on, plus element key[r] of the bias. A value of
// parameters alone (expand) is a bias without a product.
struct PointStep {
  explicit PointStep(Op of) : op(std::move(of)) {}
  Op op;
  const PointPasses* passes = nullptr;
  int64_t weight = -1, bias = -1;  // places in PointWorker::source, or -1
  bool weight_moves = false, bias_moves = false;  // whether theta holds them
  int64_t row = 0, column = 0;  // element (r, i) of the weight: weight + r * row + i * column
  int64_t first = 0, k = 0, group = 1;
  std::vector<int64_t> key;          // of the rows of one group, one after the other
  std::vector<int64_t> places;       // (keys, columns()): the parameters, times lanes
  std::vector<double> scale, shift;  // batch norm
  bool moves = false;                // whether a parameter reaches it
  // Of a product: it alone makes the adjoint of its input, all of it; and is asked to do what the relu
  // that made the input would do to it.
  bool alone = false, masks = false;
  bool masked = false;               // of the step whose relu that is
  std::vector<bool> reach;  // slots that depend on the output, where there are parameters
  int64_t bent = -1;        // first row in `first` and `curved`, of an op that curves; or -1

  bool is_product() const { return op.kind == OpKind::kLinear; }
  bool has_parameters() const { return weight_moves || bias_moves; }
  int64_t columns() const { return (weight_moves ? k : 0) + (bias_moves ? 1 : 0); }  // of a row
  const int64_t* places_of(int64_t r) const { return places.data() + key[r] * columns(); }
  int64_t parameter(int64_t r, int64_t column_of_row) const {
    return weight_moves && column_of_row < k ? weight + key[r] * row + column_of_row * column
                                             : bias + key[r];
  }
};

struct PointSlots {
  std::vector<int64_t> features, row;  // how many rows each has, and the first of them
  std::vector<bool> moves;             // whether it depends on theta
  std::vector<int> maker;              // the step that writes it; -1 for the data
  std::vector<bool> whole;             // whether its adjoint is written before it is added to
};

struct PointBlock {  // of samples
  int64_t first, samples, cols;
};

struct PointRows {  // of one worker; (rows, samples, lanes)
  Buffer<double> values, adjoints, first, curved, tangents, adjoint_tangents;
};

struct PointWorker {  // what an op may read and write of one
  PointRows rows;
  Buffer<double> source;  // (n + constants, lanes)
  Buffer<double> x, spare;
  const double* data = nullptr;  // x of the block at hand
};

}  // namespace pylandscape
