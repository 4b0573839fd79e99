#include <algorithm>

#include "cuda/directions.h"
#include "cuda/shape.h"

namespace pylandscape::cuda {
namespace {

// Cuts [begin, end) at the multiples of kChunk, so that chunks share no group of draws.
void cut(int64_t begin, int64_t end, int64_t owner, std::vector<Range>& to) {
  while (begin < end) {
    const int64_t stop = std::min(end, (begin / kChunkElements + 1) * kChunkElements);
    to.push_back({begin, stop, owner});
    begin = stop;
  }
}

}  // namespace

Plan::Plan(int64_t n, const int64_t* segments, int64_t count, Mode mode) {
  std::vector<Range> lists[kKinds];
  int64_t done = 0;
  const auto chunks = [&] { return static_cast<int64_t>(lists[kChunk].size()); };
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = segments[2 * s], end = segments[2 * s + 1];
    cut(done, begin, 0, lists[kZero]);
    done = end;
    if (begin == end) continue;
    if (!mode.has_norm()) {
      cut(begin, end, 0, lists[kChunk]);
    } else if (mode.joint) {
      cut(begin, end, 0, lists[kChunk]);
      if (lists[kOwner].empty()) lists[kOwner].push_back({0, 0, 0});
      lists[kOwner][0].end = chunks();
    } else if (end - begin <= held_elements(kWarpThreads)) {
      lists[kWarp].push_back({begin, end, 0});
    } else if (end - begin <= held_elements(kBlockThreads)) {
      lists[kBlock].push_back({begin, end, 0});
    } else {
      const int64_t first_chunk = chunks();
      cut(begin, end, static_cast<int64_t>(lists[kOwner].size()), lists[kChunk]);
      lists[kOwner].push_back({first_chunk, chunks(), 0});
    }
  }
  cut(done, n, 0, lists[kZero]);
  for (int kind = 0; kind < kKinds; ++kind) {
    first[kind] = static_cast<int64_t>(ranges.size());
    ranges.insert(ranges.end(), lists[kind].begin(), lists[kind].end());
  }
  first[kKinds] = static_cast<int64_t>(ranges.size());
}

}  // namespace pylandscape::cuda
