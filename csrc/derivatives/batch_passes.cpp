#include "derivatives/batch_passes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "derivatives/weight_sums.h"

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
Span BatchPasses<T>::span(size_t part) const {
  return {part > 0 ? own_[part - 1] + 1 : 0,
          part < own_.size() ? own_[part] : program_.ops_.size()};
}

template <typename T>
int64_t BatchPasses<T>::groups(const std::vector<BatchTile<T>>& tiles) const {
  int64_t samples = 0;
  for (const BatchTile<T>& tile : tiles) samples += tile.samples;
  return sum_groups(program_, samples, static_cast<int64_t>(tiles.size()));
}

template <typename T>
int64_t BatchPasses<T>::most_channels() const {
  int64_t most = 0;
  for (const size_t i : own_) most = std::max(most, program_.ops_[i].k);
  return most;
}

template <typename T>
BatchScratch<T>& BatchPasses<T>::scratch(const Call& call, int worker) const {
  BatchScratch<T>& found = call.scratch[std::max(worker, 0)];
  if (found.terms.empty()) {
    found.panels = Buffer<T>(layout_.panels), found.columns = Buffer<T>(layout_.most_columns);
    found.terms.resize(width_);
  }
  return found;
}

// A norm's result, then the ops up to the next one, then its moments.
template <typename T>
void BatchPasses<T>::forward(const Call& call, Memory& memory, size_t part, int64_t t,
                             const BatchScratch<T>& scratch) const {
  typename Memory::Tile& to = memory.tiles[t];
  const BatchTile<T>& tile = call.tiles[t];
  if (part == 0) {
    to.slots.assign(program_.slots_.size(), nullptr);
    to.slots[0] = tile.data;
  } else {
    const Op& op = program_.ops_[own_[part - 1]];
    const cpu::OwnNorm<T>& a = memory.norms[part - 1].args;
    T* y = to.primal.values.data() + layout_.row[op.output] * width_;
    kernels_.channel_affine(op.outer, op.k, tile.cols, a.scale, a.shift, a.relu,
                            to.slots[op.inputs[0]], y);
    to.slots[op.output] = y;
  }
  with_pass(call, memory, t, scratch, [&](const auto& pass) {
    walk_forward(span(part), pass, to.primal, to.slots.data());
  });
  if (part == own_.size()) return;
  const Op& op = program_.ops_[own_[part]];
  double* mean = memory.moments.data() + t * 2 * op.k;
  kernels_.batch_moments(op.outer, op.k, tile.cols, tile.samples, to.slots[op.inputs[0]], mean,
                         mean + op.k);
}

// The tile's loss; the adjoints of its outputs.
template <typename T>
double BatchPasses<T>::loss(const Call& call, Memory& memory, int64_t t,
                            BatchScratch<T>& scratch) const {
  const Program<T>& p = program_;
  const BatchTile<T>& tile = call.tiles[t];
  const typename Memory::Tile& at = memory.tiles[t];
  const T* output = at.slots[p.output_];
  kernels_.loss(p.loss_, tile.targets, tile.cols, output, scratch.terms.data(), nullptr);
  if (T* seed = rows(at.primal.adjoints, p.output_)) {
    kernels_.loss_gradient(p.loss_, tile.targets, tile.cols, output, seed);
    clear_padding(p.slots_[p.output_], tile.cols, tile.samples, seed);
  }
  return std::accumulate(scratch.terms.begin(), scratch.terms.begin() + tile.samples, 0.0);
}

// Chan et al. 1983.
template <typename T>
void BatchPasses<T>::combine_moments(const Call& call, Memory& memory, size_t norm) const {
  const Op& op = program_.ops_[own_[norm]];
  typename Memory::Norm& to = memory.norms[norm];
  to.mean.assign(op.k, 0.0), to.variance.assign(op.k, 0.0), to.inverse.resize(op.k);
  to.affine.assign(6 * op.k, T(0));
  double count = 0;
  for (size_t t = 0; t < call.tiles.size(); ++t) {
    const double* mean = memory.moments.data() + t * 2 * op.k;
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
    const double inverse = to.inverse[c] = 1 / std::sqrt(to.variance[c] + op.norm.eps);
    const double scale = gain != nullptr ? gain[c] * inverse : inverse;
    a[c] = static_cast<T>(scale), a[2 * op.k + c] = static_cast<T>(inverse);
    a[op.k + c] = static_cast<T>((offset != nullptr ? offset[c] : 0.0) - to.mean[c] * scale);
    a[3 * op.k + c] = static_cast<T>(-to.mean[c] * inverse);
  }
  to.args = {a, a + op.k, a + 2 * op.k, a + 3 * op.k, a + 4 * op.k, a + 5 * op.k, op.relu};
}

template <typename T>
std::vector<double> BatchPasses<T>::combine_sums(const Call& call,
                                                 const std::vector<double>& moments, size_t norm,
                                                 double* sums) const {
  const Op& op = program_.ops_[own_[norm]];
  std::vector<double> found(2 * op.k, 0.0);
  double count = 0;
  for (size_t t = 0; t < call.tiles.size(); ++t) {
    const double* from = moments.data() + t * 2 * op.k;
    for (int64_t i = 0; i < 2 * op.k; ++i) found[i] += from[i];
    count += static_cast<double>(call.tiles[t].samples * op.outer);
  }
  const auto target = [&](int use) {
    return sums != nullptr && program_.in_theta(use) ? sums + program_.uses_[use].source : nullptr;
  };
  double *dgain = target(op.norm.gain), *dshift = target(op.norm.shift);
  for (int64_t c = 0; c < op.k; ++c) {
    if (dshift != nullptr) dshift[c] += found[c];
    if (dgain != nullptr) dgain[c] += found[op.k + c];
    found[c] /= count, found[op.k + c] /= count;
  }
  return found;
}

// dx = scale (dy - <dy> - z <z dy>), where <.> is the mean over the batch and the pixels.
template <typename T>
void BatchPasses<T>::set_adjoints(const typename Memory::Norm& at,
                                  const std::vector<double>& means, T* slope, T* offset) const {
  const size_t channels = at.inverse.size();
  for (size_t c = 0; c < channels; ++c) {
    const double scale = at.args.scale[c], along = -scale * at.inverse[c] * means[channels + c];
    slope[c] = static_cast<T>(along);
    offset[c] = static_cast<T>(-scale * means[c] - along * at.mean[c]);
  }
}

template <typename T>
double BatchPasses<T>::gradient(const Call& call, BatchMemory<T>& memory, double* const* sums,
                                bool products) const {
  const auto count = static_cast<int64_t>(call.tiles.size());
  if (memory.tiles.size() < call.tiles.size()) memory.tiles.resize(count);
  for (int64_t t = 0; t < count; ++t) {
    Primal<T>& p = memory.tiles[t].primal;
    if (p.values.size() > 0) continue;
    const int64_t size = layout_.rows * width_, bent = layout_.bent_rows * width_;
    p.values = Buffer<T>(size), p.adjoints = Buffer<T>(size);
    p.first = Buffer<T>(bent), p.curved = Buffer<T>(bent);
  }
  memory.norms.resize(own_.size());
  memory.moments.resize(count * 2 * most_channels());
  for (size_t part = 0; part < own_.size(); ++part) {
    each(call, [&](const auto& own, int64_t, int64_t t) { forward(call, memory, part, t, own); });
    combine_moments(call, memory, part);
  }
  const auto norms = [&](size_t i) -> const cpu::OwnNorm<T>& { return memory.norms[i].args; };
  for (size_t part = own_.size() + 1; part-- > 0;) {
    each(call, [&](auto& own, int64_t group, int64_t t) {
      if (part == own_.size()) {
        forward(call, memory, part, t, own);
        memory.tiles[t].loss = loss(call, memory, t, own);
      }
      const size_t moments = part > 0 ? t * 2 * program_.ops_[own_[part - 1]].k : 0;
      reverse(call, memory, {memory.tiles[t].primal.adjoints, memory.moments.data() + moments},
              norms, part, t, own, sums != nullptr ? sums[group] : nullptr);
      if (part > 0 || !products) return;
      with_pass(call, memory, t, own, [&](const auto& pass) {
        walk_bends(program_, layout_, pass, memory.tiles[t].primal);
      });
    });
    if (part == 0 || !reverses(program_.ops_[own_[part - 1]])) continue;
    typename Memory::Norm& norm = memory.norms[part - 1];
    norm.adjoints = combine_sums(call, memory.moments, part - 1, sums != nullptr ? sums[0] : nullptr);
    T* slope = norm.affine.data() + 4 * program_.ops_[own_[part - 1]].k;
    set_adjoints(norm, norm.adjoints, slope, slope + program_.ops_[own_[part - 1]].k);
  }
  double loss = 0;
  for (int64_t t = 0; t < count; ++t) loss += memory.tiles[t].loss;
  return loss;
}

template class BatchPasses<float>;
template class BatchPasses<double>;

}  // namespace pylandscape
