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

// The walks are over the ops of a tile from `first` to before `last`; pass(i) is the Pass of op i.
struct Span {
  size_t first, last;
};

inline Span all_ops(const OpList& ops) { return {0, ops.ops().size()}; }

// Values; slots: (slots,), where the input's and earlier ops' values are there.
template <typename T, typename F>
void walk_forward(Span span, F pass, Primal<T>& to, const T** slots) {
  for (size_t i = span.first; i < span.last; ++i) {
    const Forward<T> at(pass(i), to, slots);
    passes<T>(at.op.kind).forward(at);
    slots[at.op.output] = at.out;
  }
}

struct Nothing {
  void operator()(size_t) const {}
};

// Adjoints of everything from those at the end, already in place; parameters' += in gradient.
// before(i): ahead of op i.
template <typename T, typename F, typename B = Nothing>
void walk_reverse(const OpList& ops, const TileLayout& layout, Span span, F pass,
                  const Buffer<T>& adjoints, T* panels, double* gradient, B before = {}) {
  for (size_t i = span.last; i-- > span.first;) {
    const Op& op = ops.ops()[i];
    if (!layout.moves[op.output]) continue;
    before(i);
    const Reverse<T> at(pass(i), adjoints, panels, gradient);
    if (op.relu) at.kernels.mask(at.size(), at.y(), at.dy);
    passes<T>(op.kind).reverse(at);
  }
}

// f'' dy, which a tangent meets again and again.
template <typename T, typename F>
void walk_bends(const OpList& ops, const TileLayout& layout, F pass, Primal<T>& to) {
  for (size_t i = 0; i < ops.ops().size(); ++i) {
    if (layout.bent_row[ops.ops()[i].output] < 0) continue;
    const Pass<T> at = pass(i);
    T* curved = at.bent(to.curved);
    at.kernels.binary(cpu::Binary::kMul, at.size(), curved, at.at(to.adjoints, at.op.output),
                      curved);
  }
}

// Tangents of values, along v.
template <typename T, typename F>
void walk_tangent_forward(const OpList& ops, const TileLayout& layout, Span span, F pass,
                          const Vector<T>& v, const Buffer<T>& values) {
  for (size_t i = span.first; i < span.last; ++i) {
    const Op& op = ops.ops()[i];
    if (!layout.moves[op.output]) continue;
    const TangentForward<T> at(pass(i), v, values);
    passes<T>(op.kind).tangent_forward(at);
    if (op.relu) at.kernels.mask(at.size(), at.y(), at.ry);
  }
}

// Tangents of adjoints, as walk_reverse; columns, panels: scratch.
template <typename T, typename F, typename B = Nothing>
void walk_tangent_reverse(const OpList& ops, const TileLayout& layout, Span span, F pass,
                          const Vector<T>& v, const Tangents<T>& tangents, T* columns, T* panels,
                          double* out, B before = {}) {
  for (size_t i = span.last; i-- > span.first;) {
    const Op& op = ops.ops()[i];
    if (!layout.moves[op.output]) continue;
    before(i);
    const TangentReverse<T> at(pass(i), v, tangents, columns, panels, out);
    if (op.relu) at.kernels.mask(at.size(), at.y(), at.rdy);  // dy is masked already
    passes<T>(op.kind).tangent_reverse(at);
  }
}

// A padding column weighs nothing: with a zero seed (rows, cols), all of its adjoints are zero.
template <typename T>
void clear_padding(int64_t rows, int64_t cols, int64_t samples, T* seed) {
  for (int64_t f = 0; f < rows; ++f)
    std::fill(seed + f * cols + samples, seed + (f + 1) * cols, T(0));
}

}  // namespace pylandscape
