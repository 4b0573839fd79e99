// Plans how a program runs on a GPU with the whole network of a point in shared memory. Decided
// here, without a GPU: which values are the same at all points, what is combined instead of multiplied, where
// everything lies, how many samples and points a block takes. No CUDA.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "common/resident.h"
#include "program/program.h"

namespace pylandscape {

// Rows of the external matrix, in this order: a slot that is the same at all points, or (op >= 0) the
// products of a linear op of such a slot with theta's weight (and theta's bias, where no direction
// moves it) and with each of the directions `moves`, (1 + moves, outer * m) rows.
struct ExternalRows {
  int slot, op;
  bool bias;
  std::vector<int> moves;
};

struct ResidentPlan {
  std::string reason;  // why it does not fit; empty where it does
  resident::Program program{};
  std::vector<int32_t> list;  // resident::Program::index_size
  std::vector<ExternalRows> external;
  std::vector<bool> fixed;  // by op: whether its result is the same at all points
};

// moves[u]: the directions, of `directions`, that move use u. Without `moves`, the points are free
// thetas. shared_limit: bytes of shared memory that a block may have.
// A program with ops that have no such kernel does not fit either; it is told all the same what is
// fixed and what is combined.
template <typename T>
ResidentPlan plan_resident(const Program<T>& program, int64_t directions,
                           const std::optional<std::vector<std::vector<int>>>& moves,
                           int64_t shared_limit);

}  // namespace pylandscape
