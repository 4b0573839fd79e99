// What the passes of the derivatives hand to an op: one op of one tile. Names: dy is the adjoint of
// y; a leading r is the tangent along a vector (Pearlmutter's R-operator), so rdy is the tangent of
// the adjoint. Whatever does not depend on theta, or is zero, is null.
#pragma once
#include <algorithm>
#include <vector>

#include "derivatives/tile_layout.h"
#include "program/buffer.h"
#include "program/items.h"

namespace pylandscape {

template <typename T>
struct Primal {  // one tile at theta; (rows, tile) each
  Buffer<T> values, adjoints;
  Buffer<T> first, curved;  // at the outputs of unary ops: f'(x), f''(x) dy
  Buffer<T> columns;        // inputs of linear ops, as blocks of columns
  Buffer<T> panels;         // adjoints of linear ops, as panels
  bool has_data = false;    // whether the data's columns are there already
};

template <typename T>
struct Vector {  // parameters as the kernels want them; of a tangent, zero where they are fixed
  Buffer<T> packed, transposed;
};

template <typename T>
struct Tangents {  // of one vector, (rows, tile) each
  Buffer<T> values, adjoints;
};

// What decides over the dropouts of a tile: of a run, at a step; its first sample in the mini-batch.
struct Draw {
  uint64_t seed, step;
  int64_t first;
};

// A sum over samples dy x^T with the data x as they stand, which waits for those of other vectors:
// each block of the data is then packed once for all. op: its number; dy: the adjoints, as panels; g:
// where the sum goes.
template <typename T>
struct DirectSum {
  size_t op;
  const T* dy;
  double* g;
};

// One tile at theta, and op `number` of it.
template <typename T>
struct Pass {
  using Value = T;
  const OpList& program;
  const TileLayout& layout;
  const cpu::Kernels<T>& kernels;
  const Vector<T>& theta;
  const Primal<T>& primal;
  const T* data;          // the tile's input, (features, cols)
  int64_t tile;           // columns of the buffers
  int64_t cols, samples;  // of this tile: with and without padding
  size_t number;
  const Op& op;
  // Of the ops that multiply by the data: their columns, where these are packed already.
  const T* data_columns = nullptr;
  const Draw* draw = nullptr;  // null: nothing is dropped
  // Where a reverse pass packs columns, as much as one op may want; null: forward does. That of
  // tangents then packs the adjoints at theta too, into panels of a tile.
  T *late_columns = nullptr, *late_panels = nullptr;
  std::vector<DirectSum<T>>* waiting = nullptr;  // null: these sums are not put off
  // By op: whose weight's sums are taken after the passes (LateSums); null: of none.
  const std::vector<bool>* late_sums = nullptr;
  const Parallel* helpers = nullptr;  // threads that may take parts of the op; null: one takes all

  // Whether such parts are worth handing out: of so many multiply-adds, or what takes as long.
  bool shares(int64_t work) const { return helpers != nullptr && work >= kSharedWork; }
  // f(first, last) over parts of 0 .. count - 1, which are independent of each other: every element
  // has the bits of f(0, count). work: of one.
  template <typename F>
  void share(int64_t count, int64_t work, F f) const {
    if (!shares(count * work)) return f(int64_t{0}, count);
    const int64_t parts = std::min<int64_t>(count, kPartsOfThread * helpers->workers);
    Items(parts, *helpers, {}).run([&](int, int64_t i) {
      f(count * i / parts, count * (i + 1) / parts);
    });
  }

  const std::vector<int64_t>& features() const { return program.slots(); }
  int64_t rows() const { return program.features(op.output); }
  int64_t size() const { return rows() * cols; }
  // Values at theta, of any slot, of an input, of the output.
  const T* value(int slot) const {
    return slot == 0 ? data : primal.values.data() + layout.row[slot] * tile;
  }
  const T* x(size_t input = 0) const { return value(op.inputs[input]); }
  const T* y() const { return value(op.output); }
  const T* first() const { return bent(primal.first); }    // f'(x)
  const T* curved() const { return bent(primal.curved); }  // f''(x) dy
  // A slot's part of tangents or adjoints.
  T* at(const Buffer<T>& of, int slot) const {
    return layout.moves[slot] ? of.data() + layout.row[slot] * tile : nullptr;
  }
  bool moves() const { return layout.moves[op.output]; }
  // Scratch of `size` elements.
  static std::vector<T> spare(int64_t size) { return std::vector<T>(size); }
  // The output's part of `first` or `curved`.
  T* bent(const Buffer<T>& of) const {
    return layout.moves[op.output] ? of.data() + layout.bent_row[op.output] * tile : nullptr;
  }
  // Parameters at theta.
  const T* parameter(int use) const { return use < 0 ? nullptr : packed(theta, use); }
  const T* weight() const { return parameter(op.weight); }
  const T* transposed(const Vector<T>& of) const {
    return of.transposed.data() + program.uses()[op.weight].packed;
  }
  // The op's inputs as it multiplies by them, kept at theta (Columns); its adjoints as panels.
  bool multiplies() const { return layout.columns_at[number] >= 0; }
  bool given() const { return data_columns != nullptr && op.inputs[0] == 0; }
  bool direct() const { return layout.direct[number] && !given(); }  // the data as they stand
  bool packs() const { return multiplies() && !given() && !direct(); }
  bool packs_forward() const {
    return packs() && late_columns == nullptr && !(primal.has_data && op.inputs[0] == 0);
  }
  bool packs_late() const { return packs() && late_columns != nullptr; }
  // Whether a reverse pass adds the op's product to the sums by itself, not with those of other ops
  // of the same weight: their columns are there only where forward packs them.
  bool sums_alone() const { return late_columns != nullptr || layout.alone(number); }
  bool sums_late() const { return late_sums != nullptr && (*late_sums)[number]; }
  const T* columns() const { return packs_late() ? late_columns : kept_columns(number); }
  // Those of any op.
  const T* kept_columns(size_t of) const {
    const bool data = data_columns != nullptr && program.ops()[of].inputs[0] == 0;
    return data ? data_columns + layout.data_at[of]
                : primal.columns.data() + layout.columns_at[of];
  }

 protected:
  static constexpr int64_t kSharedWork = int64_t{1} << 21;  // some 40 us
  static constexpr int64_t kPartsOfThread = 4;
  static const T* packed_at(const Vector<T>& of, const OpList& program, int use) {
    return of.packed.data() + program.uses()[use].packed;
  }
  const T* packed(const Vector<T>& of, int use) const { return packed_at(of, program, use); }
  const T* moving(const Vector<T>& v, int use) const {
    return program.in_theta(use) ? packed(v, use) : nullptr;
  }
  double* sums_of(int use, double* sums) const {
    return sums != nullptr && program.in_theta(use) ? sums + program.uses()[use].source : nullptr;
  }
};

// Values at theta into `to`, and what the other passes will want.
template <typename T>
struct Forward : Pass<T> {
  Forward(const Pass<T>& pass, Primal<T>& primal, const T* const* values)
      : Pass<T>(pass), to(primal), slots(values) {
    out = to.values.data() + this->layout.row[this->op.output] * this->tile;
  }
  Primal<T>& to;
  const T* const* slots;  // values at theta, by slot
  T* out;                 // y
  const T* x(size_t input = 0) const { return slots[this->op.inputs[input]]; }
};

// Adds to the adjoints of the inputs, and to the sums over samples of those of the parameters.
template <typename T>
struct Reverse : Pass<T> {
  Reverse(const Pass<T>& pass, const Buffer<T>& rows, T* panels_of_tile, double* gradient)
      : Pass<T>(pass), adjoints(rows), panels(panels_of_tile), sums(gradient) {
    dy = this->at(adjoints, this->op.output);
    dx = this->op.inputs.empty() ? nullptr : d(0);
    dw = this->sums_late() ? nullptr : target(this->op.weight), db = target(this->op.bias);
  }
  const Buffer<T>& adjoints;
  T* panels;     // of the tile
  double* sums;  // (n,) or null
  T *dy, *dx;
  double *dw, *db;
  T* d(size_t input) const { return this->at(adjoints, this->op.inputs[input]); }
  double* target(int use) const { return this->sums_of(use, sums); }
};

// The tangent of every value along v.
template <typename T>
struct TangentForward : Pass<T> {
  TangentForward(const Pass<T>& pass, const Vector<T>& vector, const Buffer<T>& rows)
      : Pass<T>(pass), v(vector), values(rows) {
    rx = this->op.inputs.empty() ? nullptr : r(0);
    rw = along(this->op.weight), rb = along(this->op.bias);
    ry = this->at(values, this->op.output);
  }
  const Vector<T>& v;
  const Buffer<T>& values;  // tangents
  const T *rx, *rw, *rb;
  T* ry;
  const T* r(size_t input) const { return this->at(values, this->op.inputs[input]); }
  const T* along(int use) const { return this->moving(v, use); }
};

// The tangent of every adjoint along v, from the output's; sums (n,) += H v.
template <typename T>
struct TangentReverse : Pass<T> {
  TangentReverse(const Pass<T>& pass, const Vector<T>& vector, const Tangents<T>& of, T* columns,
                 T* panels, double* out)
      : Pass<T>(pass),
        v(vector),
        tangents(of),
        own_columns(columns),
        own_panels(panels),
        sums(out) {
    const Op& op = this->op;
    dy = this->at(this->primal.adjoints, op.output);
    ry = this->at(tangents.values, op.output);
    rdy = this->at(tangents.adjoints, op.output);
    rx = op.inputs.empty() ? nullptr : r(0);
    rdx = op.inputs.empty() ? nullptr : rd(0);
    rdw = target(op.weight), rdb = target(op.bias);
  }
  const Vector<T>& v;
  const Tangents<T>& tangents;
  T *own_columns, *own_panels;  // scratch, as much as one op may want
  double* sums;
  const T *dy, *rx, *ry;  // dy at theta
  T *rdy, *rdx;
  double *rdw, *rdb;
  const T* r(size_t input) const { return this->at(tangents.values, this->op.inputs[input]); }
  T* rd(size_t input) const { return this->at(tangents.adjoints, this->op.inputs[input]); }
  const T* r_of(size_t number) const {  // of any op's first input
    return this->at(tangents.values, this->program.ops()[number].inputs[0]);
  }
  const T* along(int use) const { return this->moving(v, use); }
  double* target(int use) const { return this->sums_of(use, sums); }
  // <x, y> of `size` elements, products in T and their sum in double; x is written over.
  double dot(int64_t size, T* x, const T* y) const {
    this->kernels.binary(cpu::Binary::kMul, size, x, y, x);
    double sum = 0;
    this->kernels.row_sums_add(1, size, x, &sum);
    return sum;
  }
};

// out (samples, n) += the gradients of the samples' own loss terms in the op's parameters.
template <typename T>
struct SampleGradients : Pass<T> {
  SampleGradients(const Pass<T>& pass, T* rows)
      : Pass<T>(pass), dy(this->at(this->primal.adjoints, this->op.output)), out(rows) {}
  const T* dy;
  T* out;
  T* row(int64_t sample) const { return out + sample * this->program.n(); }
  // Where a use begins in a row; -1 where it is not in theta.
  int64_t offset(int use) const {
    return this->program.in_theta(use) ? this->program.uses()[use].source : -1;
  }
};

}  // namespace pylandscape
