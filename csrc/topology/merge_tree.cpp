#include "topology/merge_tree.h"

#include <algorithm>
#include <limits>

namespace pylandscape {
namespace {

constexpr int64_t kPollVertices = 1 << 16;  // between two questions whether to stop
constexpr int32_t kUnseen = -1;

struct Vertex {
  double value;
  int32_t index;
};

// Components as trees whose root is their lowest minimum; a root holds -2 - (number of its minimum).
class Components {
 public:
  explicit Components(int64_t count) : up_(static_cast<size_t>(count), kUnseen) {}

  bool seen(int64_t v) const { return up_[v] != kUnseen; }
  void make(int64_t v, int64_t number) { up_[v] = static_cast<int32_t>(-2 - number); }
  void put_under(int64_t v, int32_t root) { up_[v] = root; }
  int64_t number(int32_t root) const { return -2 - int64_t{up_[root]}; }

  int32_t root(int32_t v) {
    while (up_[v] >= 0) {
      const int32_t above = up_[v];
      if (up_[above] >= 0) up_[v] = up_[above];  // path halving
      v = above;
    }
    return v;
  }

 private:
  std::vector<int32_t> up_;
};

struct Neighbour {
  std::vector<int64_t> step;  // by axis: -1, 0, 1
  int64_t offset;
};

std::vector<Neighbour> neighbours_of(const GridShape& shape) {
  const int64_t d = static_cast<int64_t>(shape.sizes.size());
  std::vector<Neighbour> found;
  std::vector<int64_t> step(d, -1);
  while (true) {
    int64_t moved = 0, offset = 0;
    for (int64_t k = 0; k < d; ++k) {
      moved += step[k] != 0;
      offset = offset * shape.sizes[k] + step[k];
    }
    if (moved > 0 && (shape.full || moved == 1)) found.push_back({step, offset});
    int64_t k = d - 1;
    while (k >= 0 && step[k] == 1) step[k--] = -1;
    if (k < 0) return found;
    ++step[k];
  }
}

}  // namespace

bool merge_tree(const GridShape& shape, const double* values, MergeTree& tree,
                const ShouldStop& stop) {
  const int64_t d = static_cast<int64_t>(shape.sizes.size());
  int64_t count = 1;
  for (int64_t size : shape.sizes) count *= size;
  const std::vector<Neighbour> neighbours = neighbours_of(shape);

  std::vector<Vertex> order;
  order.reserve(static_cast<size_t>(count));
  for (int64_t v = 0; v < count; ++v)
    if (values[v] < std::numeric_limits<double>::infinity())
      order.push_back({values[v], static_cast<int32_t>(v)});
  std::sort(order.begin(), order.end(), [](const Vertex& a, const Vertex& b) {
    return a.value != b.value ? a.value < b.value : a.index < b.index;
  });
  if (stop()) return false;

  Components components(count + 1);
  std::vector<int64_t> top;       // by minimum: the highest node of its component so far
  std::vector<int64_t> above;     // by saddle: the node above
  std::vector<int64_t> above_min; // by minimum
  const auto add_minimum = [&](int64_t v) {
    const int64_t number = static_cast<int64_t>(tree.minima.size());
    components.make(v, number);
    tree.minima.push_back(v), tree.deaths.push_back(-1);
    tree.sizes.push_back(0), tree.borders.push_back(0);
    top.push_back(-1 - number), above_min.push_back(-1);
    return number;
  };
  if (shape.outside) add_minimum(count);

  std::vector<int64_t> at(d);
  std::vector<int32_t> roots;
  int64_t until_poll = kPollVertices;
  for (const Vertex& vertex : order) {
    if (--until_poll == 0) {
      if (stop()) return false;
      until_poll = kPollVertices;
    }
    const int64_t v = vertex.index;
    bool inside = true, border = false;
    for (int64_t k = d - 1, rest = v; k >= 0; --k) {
      at[k] = rest % shape.sizes[k], rest /= shape.sizes[k];
      const bool end = at[k] == 0 || at[k] == shape.sizes[k] - 1;
      inside &= !end;
      border |= end && shape.sizes[k] > 1;
    }
    roots.clear();
    const auto meet = [&](int32_t other) {
      const int32_t root = components.root(other);
      if (std::find(roots.begin(), roots.end(), root) == roots.end()) roots.push_back(root);
    };
    for (const Neighbour& n : neighbours) {
      if (!inside) {
        bool there = true;
        for (int64_t k = 0; k < d && there; ++k)
          there = at[k] + n.step[k] >= 0 && at[k] + n.step[k] < shape.sizes[k];
        if (!there) continue;
      }
      if (components.seen(v + n.offset)) meet(static_cast<int32_t>(v + n.offset));
    }
    if (shape.outside && border) meet(static_cast<int32_t>(count));
    if (roots.empty()) {
      const int64_t number = add_minimum(v);
      tree.sizes[number] = 1, tree.borders[number] = border;
      continue;
    }
    // Minima are numbered in their order: the smallest number is the eldest.
    std::sort(roots.begin(), roots.end(), [&](int32_t a, int32_t b) {
      return components.number(a) < components.number(b);
    });
    const int64_t eldest = components.number(roots[0]);
    components.put_under(v, roots[0]);
    if (roots.size() > 1) {
      const int64_t saddle = static_cast<int64_t>(tree.saddles.size());
      tree.saddles.push_back(v), above.push_back(-1);
      for (size_t i = 0; i < roots.size(); ++i) {
        const int64_t number = components.number(roots[i]), node = top[number];
        (node < 0 ? above_min[-1 - node] : above[node]) = saddle;
        if (i == 0) continue;
        tree.deaths[number] = v;
        tree.sizes[eldest] += tree.sizes[number];
        tree.borders[eldest] |= tree.borders[number];
        components.put_under(roots[i], roots[0]);
      }
      top[eldest] = saddle;
    }
    tree.sizes[eldest] += 1;
    tree.borders[eldest] |= border;
  }
  const int64_t m = static_cast<int64_t>(tree.minima.size());
  tree.parents = above_min;
  tree.parents.insert(tree.parents.end(), above.begin(), above.end());
  for (int64_t& parent : tree.parents)
    if (parent >= 0) parent += m;
  return true;
}

}  // namespace pylandscape
