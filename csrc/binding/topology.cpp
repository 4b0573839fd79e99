// Join trees of grids, through pybind11; what comes back is int64 as bytes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "binding/module.h"
#include "binding/stop.h"
#include "topology/merge_tree.h"

namespace py = pybind11;
using namespace pylandscape;

void pylandscape::bind_topology(py::module_& m) {
  // values (product of sizes,) -> (minima, saddles, deaths, sizes, borders, parents).
  m.def("merge_tree",
        [](std::vector<int64_t> sizes, Address values, bool full, bool outside) {
          MergeTree tree;
          const GridShape shape{std::move(sizes), full, outside};
          finish([&](const Parallel&) {
            return merge_tree(shape, in<double>(values), tree, interrupted);
          });
          const auto bytes = [](const std::vector<int64_t>& found) {
            return py::bytes(reinterpret_cast<const char*>(found.data()),
                             found.size() * sizeof(int64_t));
          };
          return py::make_tuple(bytes(tree.minima), bytes(tree.saddles), bytes(tree.deaths),
                                bytes(tree.sizes), bytes(tree.borders), bytes(tree.parents));
        });
}
