#include "derivatives/weight_sums.h"

#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {
namespace {

constexpr int64_t kLateWeight = int64_t{1} << 15;  // elements from which a weight is wide
constexpr int64_t kLateSum = 256;                  // samples that join the doubles together
constexpr int64_t kStrip = 256;                    // features of a work item
// Of the tiles whose sums wait at most, where values at theta are not kept.
constexpr int64_t kLateBytes = int64_t{1} << 26;

// Multiply-adds of a forward pass over a group for each parameter, from which on its sums take less
// than a hundredth of its time.
constexpr int64_t kGroupWork = 2048;

// Whether op i alone has the weight, of one product a tile.
bool is_late(const OpList& program, const TileLayout& layout, size_t i) {
  const Op& op = program.ops()[i];
  if (op.kind != OpKind::kLinear || op.outer != 1 || op.m * op.k < kLateWeight) return false;
  if (layout.columns_at[i] < 0 || layout.direct[i] || !layout.alone(i)) return false;
  const Use& own = program.uses()[op.weight];
  if (own.transposed()) return false;
  for (size_t u = 0; u < program.uses().size(); ++u) {  // of theta, no other has a part of it
    const Use& other = program.uses()[u];
    if (static_cast<int>(u) != op.weight && other.source >= 0 &&
        other.source < own.source + own.size() && own.source < other.source + other.size())
      return false;
  }
  return std::count_if(program.ops().begin(), program.ops().end(), [&](const Op& other) {
           bool reads = false;
           other.each_use([&](int use) { reads = reads || use == op.weight; });
           return reads;
         }) == 1;
}

}  // namespace

int64_t sum_groups(const OpList& program, int64_t samples, int64_t tiles) {
  int64_t work = 0;  // of a sample
  for (const Op& op : program.ops())
    if (entry(op.kind).columns != nullptr)
      work += program.features(op.output) * program.uses()[op.weight].cols;
  const int64_t worth = samples * work / (kGroupWork * std::max<int64_t>(1, program.n()));
  return std::min(tiles, std::clamp(worth, kLeastGroups, kMostGroups));
}

template <typename T>
LateSums LateSums::of(const OpList& program, const TileLayout& layout,
                      const cpu::Kernels<T>& kernels, int64_t tile, int64_t groups) {
  LateSums late;
  late.ops.assign(program.ops().size(), false);
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (size_t i = 0; i < program.ops().size(); ++i) {
    if (!is_late(program, layout, i)) continue;
    const Op& op = program.ops()[i];
    late.ops[i] = true;
    for (int64_t first = 0; first < op.k; first += kStrip)
      late.strips.push_back({i, first, std::min(kStrip, op.k - first)});
    const int64_t panels = op.m * tile;
    const int64_t columns = round_up(op.k, 2 * kernels.vector_length) * tile;
    late.places.push_back({i, late.size, panels, late.size + panels, columns});
    late.size += panels + columns;
    const Use& use = program.uses()[op.weight];
    ranges.emplace_back(use.source, use.source + use.size());
  }
  const int64_t bytes = groups * late.size * static_cast<int64_t>(sizeof(T));
  late.run = std::max<int64_t>(1, std::min(kLateSum / tile, kLateBytes / std::max<int64_t>(1, bytes)));
  std::sort(ranges.begin(), ranges.end());
  int64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin > at) late.others.emplace_back(at, begin);
    at = end;
  }
  if (at < program.n()) late.others.emplace_back(at, program.n());
  return late;
}

template LateSums LateSums::of<float>(const OpList&, const TileLayout&,
                                      const cpu::Kernels<float>&, int64_t, int64_t);
template LateSums LateSums::of<double>(const OpList&, const TileLayout&,
                                       const cpu::Kernels<double>&, int64_t, int64_t);

}  // namespace pylandscape
