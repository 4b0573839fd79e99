// lookup: a linear op on embedded ids, read from the table of its products (Question::fill_table),
// which has one row per id. It stands in for the two in questions; derivatives never meet it.
#include <algorithm>

#include "program/ops/entry.h"
#include "program/ops/look_up.h"

namespace pylandscape {

// A linear op on embedded ids has few different results, one per row of the embedding. Where the
// data hold more ids than that, the results are computed once per point and then looked up.
void OpList::fuse_lookups(int64_t samples, int64_t vector_length) {
  std::vector<const Op*> maker(slots_.size(), nullptr);
  for (const Op& op : ops_) maker[op.output] = &op;
  std::vector<Op> found = fused_;
  std::vector<int64_t> ids;  // that a table serves
  for (Op& op : found) {
    const Op* from = op.kind == OpKind::kLinear ? maker[op.inputs[0]] : nullptr;
    if (from == nullptr || from->kind != OpKind::kEmbedding || op.relu || op.k != from->k ||
        uses_[op.weight].transposed() || op.first(0) % op.k != 0 || op.m % vector_length != 0)
      continue;
    const Use embedded = uses_[from->weight], weight = uses_[op.weight];
    Op lookup(OpKind::kLookup, {0});
    lookup.outer = embedded.rows, lookup.k = op.k, lookup.m = op.m, lookup.output = op.output;
    const auto first = from->index.begin() + op.first(0) / op.k;
    lookup.index.assign(first, first + op.outer);
    lookup.weight = use(embedded.source, embedded.rows, embedded.cols, Use::Packing::kPanels);
    lookup.second = use(weight.source, op.m, op.k, Use::Packing::kColumns);
    lookup.bias = op.bias;
    const auto same = std::find_if(tables_.begin(), tables_.end(), [&](const Op& table) {
      return table.weight == lookup.weight && table.second == lookup.second &&
             table.bias == lookup.bias;
    });
    lookup.table = static_cast<int>(same - tables_.begin());
    if (same == tables_.end()) {
      tables_.push_back(lookup);
      ids.push_back(0);
    }
    ids[lookup.table] += op.outer;
    op = std::move(lookup);
  }
  const bool fewer = std::all_of(tables_.begin(), tables_.end(), [&](const Op& table) {
    return 2 * table.outer <= ids[table.table] * samples;
  });
  if (!fewer) tables_.clear();
  if (tables_.empty()) return;
  fused_ = std::move(found);
  drop_unread(fused_);
  place_slots();
}

namespace {

struct Lookup : QuestionRules<Lookup> {
  static constexpr const char* no_points = "embeddings";
  template <typename T>
  static void call(const Call<T>& c) {
    look_up(c.op, c.op.m, c.cols, c.kernels, -1, c.table, c.x(), c.y);
  }
};

}  // namespace

const OpEntry ops::lookup = make_entry<Lookup>();

}  // namespace pylandscape
