#include "program/plan.h"

#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

StepPlan plan_steps(const OpList& ops, const std::vector<Op>& order, const Moves& moves,
                    const std::function<bool(const Op&, int64_t)>& fits) {
  StepPlan plan;
  plan.dynamic.assign(ops.slots().size(), false);
  plan.kept.assign(ops.slots().size(), false);
  for (const Op& op : order) {
    bool on_dynamic = false, moved = false;
    op.each_use([&](int use) { moved = moved || moves.moved(ops, use); });
    for (const int x : op.inputs) on_dynamic = on_dynamic || plan.dynamic[x];
    // A batch's own statistics are of its samples alone: never computed over all of them.
    How how = on_dynamic || moved || op.norm.own ? How::kKernel : How::kStatic;
    if (how == How::kKernel && entry(op.kind).combines && !on_dynamic && !moves.free_points) {
      const int64_t terms = 1 + static_cast<int64_t>(moves.directions[op.weight].size());
      if (terms < op.k && fits(op, terms)) how = How::kCombine;  // less work than the product
    }
    plan.dynamic[op.output] = how != How::kStatic;
    if (how == How::kKernel)
      for (const int x : op.inputs) plan.kept[x] = plan.kept[x] || !plan.dynamic[x];
    plan.how.push_back(how);
  }
  const int output = ops.output();
  plan.kept[output] = plan.kept[output] || !plan.dynamic[output];
  return plan;
}

Arena plan_arena(const OpList& ops, const std::vector<Op>& order, const std::vector<bool>& runs,
                 const std::vector<bool>& reads) {
  const int steps = static_cast<int>(order.size());
  std::vector<int> last(ops.slots().size(), -1);
  for (int i = 0; i < steps; ++i)
    if (reads[i])
      for (const int x : order[i].inputs) last[x] = i;
  last[ops.output()] = steps;
  Arena arena;
  std::vector<int64_t>& place = arena.place;
  place.assign(ops.slots().size(), -1);
  std::vector<int> alive;
  for (int i = 0; i < steps; ++i) {
    if (!runs[i]) continue;
    const Op& op = order[i];
    const int64_t rows = ops.features(op.output);
    const bool in_place = entry(op.kind).in_place;
    alive.erase(std::remove_if(alive.begin(), alive.end(),
                               [&](int s) { return in_place ? last[s] <= i : last[s] < i; }),
                alive.end());
    const auto dying = std::find_if(op.inputs.begin(), op.inputs.end(), [&](int s) {
      return in_place && last[s] == i && place[s] >= 0;
    });
    int64_t row = 0;
    if (dying != op.inputs.end()) {
      // The other input of a binary op may die here as well; its rows are free from now on.
      row = place[*dying];
    } else {
      // What the op reads is alive, so that no thread writes where another still reads.
      std::sort(alive.begin(), alive.end(), [&](int a, int b) { return place[a] < place[b]; });
      for (const int s : alive) {
        if (row + rows <= place[s]) break;
        row = std::max(row, place[s] + ops.features(s));
      }
    }
    place[op.output] = row;
    arena.rows = std::max(arena.rows, row + rows);
    alive.push_back(op.output);
  }
  return arena;
}

}  // namespace pylandscape
