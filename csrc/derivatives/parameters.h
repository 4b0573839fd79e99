// The parameters of one vector as the passes want them, and the walks over the ops of a tile.
#pragma once
#include <algorithm>
#include <vector>

#include "derivatives/passes.h"
#include "program/ops/entry.h"
#include "program/program.h"

namespace pylandscape {

// In panels, and in panels of the transposed matrices. Constants are null where they stay as they
// are: of a tangent zero, or as they were packed before.
template <typename T>
void pack_parameters(const Program<T>& program, const TileLayout& layout, const T* vector,
                     const T* constants, Vector<T>& to);

// Values of a tile whose input is `data`; pass(i) is the Pass of op i. slots: scratch.
template <typename T, typename F>
void walk_forward(const OpList& ops, const T* data, F pass, Primal<T>& to,
                  std::vector<const T*>& slots) {
  slots.assign(ops.slots().size(), nullptr);
  slots[0] = data;
  for (size_t i = 0; i < ops.ops().size(); ++i) {
    const Forward<T> at(pass(i), to, slots.data());
    passes<T>(at.op.kind).forward(at);
    slots[at.op.output] = at.out;
  }
}

// Adjoints of everything from the output's, already in place; parameters' += in gradient.
template <typename T, typename F>
void walk_reverse(const OpList& ops, const TileLayout& layout, F pass, const Buffer<T>& adjoints,
                  T* panels, double* gradient) {
  for (size_t i = ops.ops().size(); i-- > 0;) {
    const Op& op = ops.ops()[i];
    if (!layout.moves[op.output]) continue;
    const Reverse<T> at(pass(i), adjoints, panels, gradient);
    if (op.relu) at.kernels.mask(at.size(), at.y(), at.dy);
    passes<T>(op.kind).reverse(at);
  }
}

}  // namespace pylandscape
