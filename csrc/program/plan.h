// What runs, and where its values lie: planned once for the CPU (question/) and for a block of a GPU
// (resident_plan.h).
#pragma once
#include <functional>
#include <vector>

#include "program/op_list.h"

namespace pylandscape {

// How a step of a question gets its value.
enum class How {
  kStatic,   // the same at all points: computed once
  kKernel,   // by its kernel, at every point
  kCombine,  // a linear op of a static input is linear in the point: a sum over directions of
             // products that are computed once
};

// The directions that move each use; or free points, which move all of theta.
struct Moves {
  bool free_points = false;
  std::vector<std::vector<int>> directions;  // by use
  bool moved(const OpList& ops, int use) const {
    return free_points ? ops.in_theta(use) : !directions[use].empty();
  }
};

struct StepPlan {
  std::vector<How> how;       // by op
  std::vector<bool> dynamic;  // by slot: whether points change it
  std::vector<bool> kept;     // by slot: static, and read by a kernel or the result
};
// Of the ops in `order`. fits(op, terms): whether a combination of so many products may be kept.
StepPlan plan_steps(const OpList& ops, const std::vector<Op>& order, const Moves& moves,
                    const std::function<bool(const Op&, int64_t terms)>& fits);

// f(use) for the parameters that a step reads at every point: a combination reads only its bias.
template <typename F>
void each_read(const Op& op, How how, F f) {
  if (how == How::kKernel) op.each_use(f);
  if (how == How::kCombine && op.bias >= 0) f(op.bias);
}

// Rows for the output of every op that `runs`, first fit over the slots alive at the same time; an
// op that may work in place writes over an input that dies with it. reads: whether an op reads its
// inputs from the arena.
struct Arena {
  std::vector<int64_t> place;  // by slot: its first row, or -1
  int64_t rows = 0;
};
Arena plan_arena(const OpList& ops, const std::vector<Op>& order, const std::vector<bool>& runs,
                 const std::vector<bool>& reads);

}  // namespace pylandscape
