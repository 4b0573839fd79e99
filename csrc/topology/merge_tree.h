// The join tree of a function on the vertices of a grid of any dimension: how the components of the
// sublevel sets {f <= t} are born at minima and join at saddles, by union-find over the vertices in
// the order of (value, index), so that ties are decided by the index. Memory is linear in the grid:
// 24 bytes a vertex while they are ordered.
#pragma once
#include <cstdint>
#include <vector>

#include "program/parallel.h"

namespace pylandscape {

struct MergeTree {
  std::vector<int64_t> minima;   // (m,) vertices
  std::vector<int64_t> saddles;  // (s,) vertices where two or more components join
  // (m,) by the elder rule: the vertex where the component joins one with a lower minimum; -1: none.
  std::vector<int64_t> deaths;
  std::vector<int64_t> sizes;    // (m,) vertices of the component when it dies
  std::vector<int64_t> borders;  // (m,) 1 where the component touches the border when it dies
  std::vector<int64_t> parents;  // (m + s,) of minima, then saddles: the saddle above, by node; -1
};

struct GridShape {
  std::vector<int64_t> sizes;  // the last axis is the fastest
  bool full;                   // all 3^d - 1 neighbours, otherwise the 2 d along the axes
  // The outside of the grid is one more component, the eldest, which every vertex of the border
  // adjoins; otherwise there is nothing outside.
  bool outside;
};

// values (product of sizes,). Vertices with +inf or NaN are walls, in no component. Axes of one
// vertex have no border. False when stopped.
bool merge_tree(const GridShape& shape, const double* values, MergeTree& tree,
                const ShouldStop& stop);

}  // namespace pylandscape
