#include "derivatives/batch_passes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "derivatives/parameters.h"

namespace pylandscape {

template <typename T>
BatchPasses<T>::BatchPasses(const Program<T>& program, const TileLayout& layout, int64_t width)
    : program_(program),
      kernels_(program.kernels_),
      layout_(layout),
      width_(width),
      cleared_(program.ops_.size()),
      fresh_(program.ops_.size(), false) {
  std::vector<bool> met(program.slots_.size(), false);
  met[program.output_] = true;  // by the loss
  for (size_t i = program.ops_.size(); i-- > 0;) {
    const Op& op = program.ops_[i];
    if (op.norm.own) own_.insert(own_.begin(), i);
    if (!reverses(op)) continue;
    for (const int slot : op.inputs) {
      if (!layout.moves[slot] || met[slot]) continue;
      met[slot] = true;
      if (op.norm.own)
        fresh_[i] = true;
      else
        cleared_[i].push_back(slot);
    }
  }
}

template <typename T>
int64_t BatchPasses<T>::tile_bytes() const {
  return 2 * (layout_.rows + layout_.bent_rows) * width_ * static_cast<int64_t>(sizeof(T));
}

template <typename T>
size_t BatchPasses<T>::end(size_t part) const {
  return part < own_.size() ? own_[part] : program_.ops_.size();
}

template <typename T>
void BatchPasses<T>::ready(const Call& call, int workers) const {
  Memory& m = call.memory;
  const auto tiles = call.tiles.size();
  if (m.tiles.size() < tiles) m.tiles.resize(tiles);
  for (size_t t = 0; t < tiles; ++t) {
    Primal<T>& p = m.tiles[t].primal;
    if (p.values.size() > 0) continue;
    const int64_t size = layout_.rows * width_, bent = layout_.bent_rows * width_;
    p.values = Buffer<T>(size), p.adjoints = Buffer<T>(size);
    p.first = Buffer<T>(bent), p.curved = Buffer<T>(bent);
  }
  if (m.scratch.size() < static_cast<size_t>(workers)) m.scratch.resize(workers);
  if (m.norms.empty()) m.norms.resize(own_.size());
}

template <typename T>
typename BatchMemory<T>::Scratch& BatchPasses<T>::scratch(Memory& memory, int worker) const {
  typename Memory::Scratch& found = memory.scratch[std::max(worker, 0)];
  if (found.terms.empty()) {
    found.panels = Buffer<T>(layout_.panels), found.columns = Buffer<T>(layout_.most_columns);
    found.terms.resize(width_);
  }
  return found;
}

template <typename T>
template <typename F>
void BatchPasses<T>::with_pass(const Call& call, int64_t t, const typename Memory::Scratch& scratch,
                               F f) const {
  const BatchTile<T>& tile = call.tiles[t];
  Draw draw{};
  if (call.draw != nullptr) draw = *call.draw, draw.first = tile.first;
  f([&](size_t i) -> Pass<T> {
    return {program_,
            layout_,
            kernels_,
            call.theta,
            call.memory.tiles[t].primal,
            tile.data,
            width_,
            tile.cols,
            tile.samples,
            i,
            program_.ops_[i],
            tile.columns,
            call.draw != nullptr ? &draw : nullptr,
            scratch.columns.data()};
  });
}

// A norm's result, then the ops up to the next one, then its moments.
template <typename T>
void BatchPasses<T>::forward(const Call& call, size_t part, int64_t t,
                             const typename Memory::Scratch& scratch) const {
  typename Memory::Tile& to = call.memory.tiles[t];
  const BatchTile<T>& tile = call.tiles[t];
  if (part == 0) {
    to.slots.assign(program_.slots_.size(), nullptr);
    to.slots[0] = tile.data;
  } else {
    const Op& op = program_.ops_[own_[part - 1]];
    const cpu::OwnNorm<T>& a = call.memory.norms[part - 1].args;
    T* y = to.primal.values.data() + layout_.row[op.output] * width_;
    kernels_.channel_affine(op.outer, op.k, tile.cols, a.scale, a.shift, a.relu,
                            to.slots[op.inputs[0]], y);
    to.slots[op.output] = y;
  }
  with_pass(call, t, scratch, [&](const auto& pass) {
    for (size_t i = begin(part); i < end(part); ++i) {
      const Forward<T> at(pass(i), to.primal, to.slots.data());
      passes<T>(at.op.kind).forward(at);
      to.slots[at.op.output] = at.out;
    }
  });
  if (part == own_.size()) return;
  const Op& op = program_.ops_[own_[part]];
  double* mean = call.memory.moments.data() + t * 2 * op.k;
  kernels_.batch_moments(op.outer, op.k, tile.cols, tile.samples, to.slots[op.inputs[0]], mean,
                         mean + op.k);
}

// The tile's loss; the adjoints of its outputs.
template <typename T>
double BatchPasses<T>::loss(const Call& call, int64_t t, typename Memory::Scratch& scratch) const {
  const Program<T>& p = program_;
  const BatchTile<T>& tile = call.tiles[t];
  const typename Memory::Tile& at = call.memory.tiles[t];
  const T* output = at.slots[p.output_];
  kernels_.loss(p.loss_, tile.targets, tile.cols, output, scratch.terms.data(), nullptr);
  if (layout_.moves[p.output_]) {
    T* seed = at.primal.adjoints.data() + layout_.row[p.output_] * width_;
    kernels_.loss_gradient(p.loss_, tile.targets, tile.cols, output, seed);
    for (int64_t f = 0; f < p.slots_[p.output_]; ++f)  // a padding column weighs nothing
      std::fill(seed + f * tile.cols + tile.samples, seed + (f + 1) * tile.cols, T(0));
  }
  return std::accumulate(scratch.terms.begin(), scratch.terms.begin() + tile.samples, 0.0);
}

// What a norm adds to the adjoints before it, then the ops down to the norm before, then the sums
// over its adjoints.
template <typename T>
void BatchPasses<T>::reverse(const Call& call, size_t part, int64_t t,
                             typename Memory::Scratch& scratch, double* sums) const {
  const BatchTile<T>& tile = call.tiles[t];
  const Primal<T>& primal = call.memory.tiles[t].primal;
  const auto adjoint = [&](int slot) {
    return layout_.moves[slot] ? primal.adjoints.data() + layout_.row[slot] * width_ : nullptr;
  };
  const auto& slots = call.memory.tiles[t].slots;
  if (part < own_.size()) {
    const Op& op = program_.ops_[own_[part]];
    T* dx = adjoint(op.inputs[0]);
    if (dx != nullptr)
      kernels_.own_norm_reverse(op.outer, op.k, tile.cols, tile.samples,
                                call.memory.norms[part].args, slots[op.inputs[0]],
                                adjoint(op.output), !fresh_[own_[part]], dx);
  }
  with_pass(call, t, scratch, [&](const auto& pass) {
    for (size_t i = end(part); i-- > begin(part);) {
      const Op& op = program_.ops_[i];
      if (!reverses(op)) continue;
      for (const int slot : cleared_[i])
        std::fill_n(adjoint(slot), program_.slots_[slot] * tile.cols, T(0));
      const Reverse<T> at(pass(i), primal.adjoints, scratch.panels.data(), sums);
      if (op.relu) kernels_.mask(at.size(), at.y(), at.dy);
      passes<T>(op.kind).reverse(at);
    }
  });
  if (part == 0) return;
  const Op& op = program_.ops_[own_[part - 1]];
  if (!reverses(op)) return;
  double* found = call.memory.moments.data() + t * 2 * op.k;
  std::fill_n(found, 2 * op.k, 0.0);
  kernels_.own_norm_sums(op.outer, op.k, tile.cols, call.memory.norms[part - 1].args,
                         slots[op.inputs[0]], adjoint(op.output), found);
}

// Chan et al. 1983.
template <typename T>
void BatchPasses<T>::combine_moments(const Call& call, size_t norm) const {
  const Op& op = program_.ops_[own_[norm]];
  typename Memory::Norm& to = call.memory.norms[norm];
  to.mean.assign(op.k, 0.0), to.variance.assign(op.k, 0.0), to.affine.assign(6 * op.k, T(0));
  double count = 0;
  for (size_t t = 0; t < call.tiles.size(); ++t) {
    const double* mean = call.memory.moments.data() + t * 2 * op.k;
    const double more = static_cast<double>(call.tiles[t].samples * op.outer);
    for (int64_t c = 0; c < op.k; ++c) {
      const double step = mean[c] - to.mean[c];
      to.mean[c] += step * (more / (count + more));
      to.variance[c] += mean[op.k + c] + step * step * (count * (more / (count + more)));
    }
    count += more;
  }
  const auto at = [&](int use) {
    return use < 0 ? nullptr : call.theta.packed.data() + program_.uses_[use].packed;
  };
  const T *gain = at(op.norm.gain), *offset = at(op.norm.shift);
  T* a = to.affine.data();
  for (int64_t c = 0; c < op.k; ++c) {
    to.variance[c] /= count;
    const double inverse = 1 / std::sqrt(to.variance[c] + op.norm.eps);
    const double scale = gain != nullptr ? gain[c] * inverse : inverse;
    a[c] = static_cast<T>(scale), a[2 * op.k + c] = static_cast<T>(inverse);
    a[op.k + c] = static_cast<T>((offset != nullptr ? offset[c] : 0.0) - to.mean[c] * scale);
    a[3 * op.k + c] = static_cast<T>(-to.mean[c] * inverse);
  }
  to.args = {a, a + op.k, a + 2 * op.k, a + 3 * op.k, a + 4 * op.k, a + 5 * op.k, op.relu};
}

// dx = scale (dy - <dy> - z <z dy>), where <.> is the mean over the batch and the pixels.
template <typename T>
void BatchPasses<T>::combine_sums(const Call& call, size_t norm, double* sums) const {
  const Op& op = program_.ops_[own_[norm]];
  typename Memory::Norm& to = call.memory.norms[norm];
  std::vector<double> found(2 * op.k, 0.0);
  double count = 0;
  for (size_t t = 0; t < call.tiles.size(); ++t) {
    const double* from = call.memory.moments.data() + t * 2 * op.k;
    for (int64_t i = 0; i < 2 * op.k; ++i) found[i] += from[i];
    count += static_cast<double>(call.tiles[t].samples * op.outer);
  }
  const auto target = [&](int use) {
    return program_.in_theta(use) ? sums + program_.uses_[use].source : nullptr;
  };
  double *dgain = target(op.norm.gain), *dshift = target(op.norm.shift);
  T* a = to.affine.data();
  for (int64_t c = 0; c < op.k; ++c) {
    if (dshift != nullptr) dshift[c] += found[c];
    if (dgain != nullptr) dgain[c] += found[op.k + c];
    const double inverse = 1 / std::sqrt(to.variance[c] + op.norm.eps), scale = a[c];
    const double slope = -scale * inverse * found[op.k + c] / count;
    a[4 * op.k + c] = static_cast<T>(slope);
    a[5 * op.k + c] = static_cast<T>(-scale * found[c] / count - slope * to.mean[c]);
  }
}

template <typename T>
double BatchPasses<T>::gradient(const std::vector<BatchTile<T>>& tiles, const Vector<T>& theta,
                                const Draw* draw, int workers, const Groups& run,
                                BatchMemory<T>& memory, double* const* sums) const {
  const Call call{tiles, theta, draw, memory};
  ready(call, workers);
  const auto count = static_cast<int64_t>(tiles.size()), groups = std::min(kGroups, count);
  int64_t most = 0;
  for (const size_t i : own_) most = std::max(most, program_.ops_[i].k);
  memory.moments.resize(count * 2 * most);
  const auto each = [&](const auto& body) {  // tile by tile
    run(groups, [&](int worker, int64_t group) {
      for (int64_t t = group * count / groups; t < (group + 1) * count / groups; ++t)
        body(scratch(memory, worker), group, t);
    });
  };
  for (size_t part = 0; part < own_.size(); ++part) {
    each([&](const auto& own, int64_t, int64_t t) { forward(call, part, t, own); });
    combine_moments(call, part);
  }
  for (size_t part = own_.size() + 1; part-- > 0;) {
    each([&](auto& own, int64_t group, int64_t t) {
      if (part == own_.size()) {
        forward(call, part, t, own);
        memory.tiles[t].loss = loss(call, t, own);
      }
      reverse(call, part, t, own, sums[group]);
    });
    if (part > 0 && reverses(program_.ops_[own_[part - 1]])) combine_sums(call, part - 1, sums[0]);
  }
  double loss = 0;
  for (int64_t t = 0; t < count; ++t) loss += memory.tiles[t].loss;
  return loss;
}

template class BatchPasses<float>;
template class BatchPasses<double>;

}  // namespace pylandscape
