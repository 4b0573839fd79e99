// Products of one batch whose samples depend on each other; see batch_passes.h.
#include "derivatives/batch_passes.h"

namespace pylandscape {

template <typename T>
int64_t BatchPasses<T>::tile_tangent_bytes() const {
  return 2 * layout_.rows * width_ * static_cast<int64_t>(sizeof(T));
}

// As `forward`.
template <typename T>
void BatchPasses<T>::tangent_forward(const Call& call, const Memory& memory, const Vector<T>& v,
                                     size_t part, int64_t t, const BatchScratch<T>& scratch,
                                     Moved& to) const {
  const BatchTile<T>& tile = call.tiles[t];
  const Buffer<T>& values = to.tiles[t].values;
  const auto& slots = memory.tiles[t].slots;
  if (part > 0 && reverses(program_.ops_[own_[part - 1]])) {
    const Op& op = program_.ops_[own_[part - 1]];
    kernels_.own_norm_tangent(op.outer, op.k, tile.cols, memory.norms[part - 1].args,
                              to.norms[part - 1].args, slots[op.inputs[0]],
                              rows(values, op.inputs[0]), rows(values, op.output));
  }
  with_pass(call, memory, t, scratch, [&](const auto& pass) {
    walk_tangent_forward(program_, layout_, span(part), pass, v, values);
  });
  if (part == own_.size()) return;
  const Op& op = program_.ops_[own_[part]];
  const T* rx = rows(values, op.inputs[0]);
  double* sums = to.moments.data() + t * 2 * op.k;
  std::fill_n(sums, 2 * op.k, 0.0);
  if (rx == nullptr) return;
  cpu::OwnNorm<T> linear = memory.norms[part].args;
  linear.relu = false;
  kernels_.own_norm_sums(op.outer, op.k, tile.cols, tile.samples, linear, slots[op.inputs[0]], rx,
                         sums);
}

// rz and ry, of the batch's <rx> and <z rx>.
template <typename T>
void BatchPasses<T>::combine_moved(const Call& call, const Memory& memory, const Vector<T>& v,
                                   size_t norm, Moved& to) const {
  const Op& op = program_.ops_[own_[norm]];
  const typename Memory::Norm& at = memory.norms[norm];
  typename Moved::Norm& found = to.norms[norm];
  found.moved = combine_sums(call, to.moments, norm, nullptr);
  found.affine.assign(7 * op.k, T(0));
  const T *rgain = along(v, op.norm.gain), *rshift = along(v, op.norm.shift);
  T* r = found.affine.data();
  for (int64_t c = 0; c < op.k; ++c) {
    const double inverse = at.inverse[c], scale = at.args.scale[c];
    const double mean = found.moved[c], turn = found.moved[op.k + c];
    const double share = (rgain != nullptr ? rgain[c] : 0.0) - scale * turn;  // of z in ry
    const double centre = -at.mean[c] * inverse;
    r[c] = static_cast<T>(share * inverse);
    r[op.k + c] =
        static_cast<T>(share * centre + (rshift != nullptr ? rshift[c] : 0.0) - scale * mean);
    r[2 * op.k + c] = static_cast<T>(-inverse * inverse * turn);
    r[3 * op.k + c] = static_cast<T>(-inverse * mean - inverse * turn * centre);
  }
  found.args = {r,            r + op.k,     r + 2 * op.k, r + 3 * op.k,
                r + 4 * op.k, r + 5 * op.k, r + 6 * op.k};
  found.seeded = at.args;
  found.seeded.slope = r, found.seeded.offset = r + op.k;  // which forward is done with by then
}

// The output's adjoint from its tangent.
template <typename T>
void BatchPasses<T>::seed(const Call& call, const Memory& memory, int64_t t,
                          const Moved& to) const {
  const Program<T>& p = program_;
  const BatchTile<T>& tile = call.tiles[t];
  T* seed = rows(to.tiles[t].adjoints, p.output_);
  kernels_.loss_hvp(p.loss_, tile.targets, tile.cols, memory.tiles[t].slots[p.output_],
                    rows(to.tiles[t].values, p.output_), seed);
  clear_padding(p.slots_[p.output_], tile.cols, tile.samples, seed);
}

// As `reverse`.
template <typename T>
void BatchPasses<T>::tangent_reverse(const Call& call, const Memory& memory, const Vector<T>& v,
                                     size_t part, int64_t t, const BatchScratch<T>& scratch,
                                     Moved& to, double* sums) const {
  const BatchTile<T>& tile = call.tiles[t];
  const auto& slots = memory.tiles[t].slots;
  const Tangents<T>& moved = to.tiles[t];
  const Buffer<T>& adjoints = memory.tiles[t].primal.adjoints;
  if (part < own_.size()) {
    const Op& op = program_.ops_[own_[part]];
    T* rdx = rows(moved.adjoints, op.inputs[0]);
    if (rdx != nullptr)
      kernels_.own_norm_reverse_tangent(
          op.outer, op.k, tile.cols, tile.samples, memory.norms[part].args, to.norms[part].args,
          slots[op.inputs[0]], rows(moved.values, op.inputs[0]), rows(adjoints, op.output),
          rows(moved.adjoints, op.output), !fresh_[own_[part]], rdx);
  }
  with_pass(call, memory, t, scratch, [&](const auto& pass) {
    walk_tangent_reverse(program_, layout_, span(part), pass, v, moved, scratch.own_columns.data(),
                         scratch.own_panels.data(), sums,
                         [&](size_t i) { clear_adjoints(moved.adjoints, i, tile.cols); });
  });
  if (part == 0) return;
  const Op& op = program_.ops_[own_[part - 1]];
  if (!reverses(op)) return;
  double* found = to.moments.data() + t * 2 * op.k;
  std::fill_n(found, 2 * op.k, 0.0);
  kernels_.own_norm_tangent_sums(op.outer, op.k, tile.cols, memory.norms[part - 1].args,
                                 to.norms[part - 1].args, slots[op.inputs[0]],
                                 rows(moved.values, op.inputs[0]), rows(adjoints, op.output),
                                 rows(moved.adjoints, op.output), found);
}

// rdx, of the batch's <rdy> and <z rdy + rz dy>.
template <typename T>
void BatchPasses<T>::combine_moved_sums(const Call& call, const Memory& memory,
                                        const Vector<T>& v, size_t norm, Moved& to,
                                        double* sums) const {
  const Op& op = program_.ops_[own_[norm]];
  const typename Memory::Norm& at = memory.norms[norm];
  typename Moved::Norm& found = to.norms[norm];
  const std::vector<double> means = combine_sums(call, to.moments, norm, sums);
  const T* rgain = along(v, op.norm.gain);
  T* r = found.affine.data();
  for (int64_t c = 0; c < op.k; ++c) {
    const double inverse = at.inverse[c], scale = at.args.scale[c];
    const double centre = -at.mean[c] * inverse, turn = found.moved[op.k + c];
    const double mean = at.adjoints[c], slope = at.adjoints[op.k + c];
    // The tangent of scale, and what z and one are multiplied by.
    const double moved = inverse * ((rgain != nullptr ? rgain[c] : 0.0) - scale * turn);
    const double share = -moved * slope - scale * means[op.k + c];
    const double rest = -moved * mean - scale * means[c];
    r[4 * op.k + c] = static_cast<T>(moved);
    r[5 * op.k + c] = static_cast<T>(share * inverse + scale * slope * inverse * inverse * turn);
    r[6 * op.k + c] = static_cast<T>(share * centre + rest +
                                     scale * slope * inverse * (found.moved[c] + turn * centre));
  }
}

template <typename T>
void BatchPasses<T>::products(Matrix matrix, const Call& call, const BatchMemory<T>& memory,
                              int64_t count, const Vector<T>* vectors, BatchTangents<T>* to,
                              const std::vector<std::vector<double*>>& sums) const {
  if (!layout_.moves[program_.output_]) return;  // no parameter reaches the output
  const size_t tiles = call.tiles.size();
  for (int64_t j = 0; j < count; ++j) {
    if (to[j].tiles.size() < tiles) to[j].tiles.resize(tiles);
    for (size_t t = 0; t < tiles; ++t) {
      const int64_t size = layout_.rows * width_;
      if (to[j].tiles[t].values.size() == 0) to[j].tiles[t] = {Buffer<T>(size), Buffer<T>(size)};
    }
    to[j].norms.resize(own_.size());
    to[j].moments.resize(tiles * 2 * most_channels());
  }
  for (BatchScratch<T>& own : call.scratch)
    if (own.own_columns.size() == 0)
      own.own_columns = Buffer<T>(layout_.most_columns), own.own_panels = Buffer<T>(layout_.panels);
  const bool hessian = matrix == Matrix::kHessian;
  for (size_t part = 0; part < own_.size(); ++part) {
    each(call, [&](const auto& own, int64_t, int64_t t) {
      for (int64_t j = 0; j < count; ++j)
        tangent_forward(call, memory, vectors[j], part, t, own, to[j]);
    });
    for (int64_t j = 0; j < count; ++j) combine_moved(call, memory, vectors[j], part, to[j]);
  }
  for (size_t part = own_.size() + 1; part-- > 0;) {
    each(call, [&](const auto& own, int64_t group, int64_t t) {
      for (int64_t j = 0; j < count; ++j) {
        Moved& of = to[j];
        if (part == own_.size()) {
          tangent_forward(call, memory, vectors[j], part, t, own, of);
          seed(call, memory, t, of);
        }
        if (hessian) {
          tangent_reverse(call, memory, vectors[j], part, t, own, of, sums[j][group]);
          continue;
        }
        const size_t at = part > 0 ? t * 2 * program_.ops_[own_[part - 1]].k : 0;
        const auto norms = [&](size_t i) -> const cpu::OwnNorm<T>& { return of.norms[i].seeded; };
        reverse(call, memory, {of.tiles[t].adjoints, of.moments.data() + at}, norms, part, t, own,
                sums[j][group]);
      }
    });
    if (part == 0 || !reverses(program_.ops_[own_[part - 1]])) continue;
    for (int64_t j = 0; j < count; ++j) {
      if (hessian) {
        combine_moved_sums(call, memory, vectors[j], part - 1, to[j], sums[j][0]);
        continue;
      }
      T* slope = to[j].norms[part - 1].affine.data();
      set_adjoints(memory.norms[part - 1],
                   combine_sums(call, to[j].moments, part - 1, sums[j][0]), slope,
                   slope + program_.ops_[own_[part - 1]].k);
    }
  }
}

template class BatchPasses<float>;
template class BatchPasses<double>;

}  // namespace pylandscape
