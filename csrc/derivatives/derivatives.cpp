#include "derivatives/derivatives.h"

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "derivatives/parameters.h"
#include "program/items.h"

namespace pylandscape {
namespace {

// Independent partial sums over tiles. Fixed, so that the bits are, whatever the threads.
constexpr int64_t kGroups = 4;
constexpr int64_t kInFlight = 16;                      // vectors at once
constexpr int64_t kPartialBytes = int64_t{256} << 20;  // of their partial sums at most
constexpr int64_t kBlock = 8;                          // vectors that a tile takes together at most
// Of the tangents of such a block at most: where values at theta are kept, and where they are
// computed anew for every block.
constexpr int64_t kBlockBytes = int64_t{1} << 20;
constexpr int64_t kRecomputeBytes = int64_t{1} << 26;

// Batches that take no more are divided among the groups, instead of the tiles of each.
constexpr int64_t kApartBytes = int64_t{256} << 20;

void add(int64_t n, const double* x, double* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

}  // namespace

template <typename T>
Derivatives<T>::Derivatives(const Program<T>& program, const T* theta, int64_t memory,
                            const Parallel& parallel, const ShouldStop& stop)
    : program_(program),
      kernels_(program.kernels_),
      shelf_(program.shelf_),
      memory_(memory),
      groups_(std::min(kGroups, program.tiles_)),
      layout_(program, program.tile_, program.kernels_.vector_length) {
  const Program<T>& p = program_;
  take_memory();
  pack_parameters(p, layout_, theta, p.constants_.data(), theta_);
  if (p.mixes()) {
    take_batches(parallel, stop);
    return;
  }
  const int64_t bytes =
      (2 * (layout_.rows + layout_.bent_rows) * p.tile_ + layout_.columns + layout_.panels) *
      static_cast<int64_t>(sizeof(T));
  if (bytes <= memory / p.tiles_) kept_.resize(p.tiles_);
  const int64_t tangents = std::max<int64_t>(1, 2 * layout_.rows * p.tile_ * int64_t{sizeof(T)});
  block_ = std::clamp<int64_t>((kept() ? kBlockBytes : kRecomputeBytes) / tangents, 1, kBlock);

  std::vector<double> partial(groups_ * p.n_), losses(groups_);
  std::vector<Primal<T>> own(kept() ? 0 : parallel.workers);
  Items items(groups_, parallel, stop);
  const bool done = items.run([&](int worker, int64_t group) {
    for (int64_t t = group_begin(group); t < group_begin(group + 1) && !items.stopping(); ++t) {
      Primal<T>& to = kept() ? kept_[t] : own[worker];
      if (to.values.size() == 0) to = new_primal();
      losses[group] += primal(t, to, partial.data() + group * p.n_);
    }
  });
  if (!done) throw Stopped();
  loss_ = std::accumulate(losses.begin(), losses.end(), 0.0);
  gradient_.assign(p.n_, 0.0);
  for (int64_t g = 0; g < groups_; ++g) add(p.n_, partial.data() + g * p.n_, gradient_.data());
}

// Every pass writes what it reads, so that values of another theta do no harm.
template <typename T>
void Derivatives<T>::take_memory() {
  const auto found = std::static_pointer_cast<Memory>(shelf_->take());
  if (found == nullptr || found->bytes != memory_) return;
  theta_ = std::move(found->theta), kept_ = std::move(found->kept);
  works_ = std::move(found->works), vectors_ = std::move(found->vectors);
  partial_ = std::move(found->partial);
}

template <typename T>
Derivatives<T>::~Derivatives() {
  try {
    shelf_->put(std::make_shared<Memory>(
        Memory{memory_, std::move(theta_), std::move(kept_), std::move(works_),
               std::move(vectors_), std::move(partial_)}));
  } catch (const std::bad_alloc&) {
  }
}

// Loss and gradient of batches whose samples depend on each other.
template <typename T>
void Derivatives<T>::take_batches(const Parallel& parallel, const ShouldStop& stop) {
  const Program<T>& p = program_;
  const BatchPasses<T> passes(p, layout_, p.tile_);
  const auto batches = static_cast<int64_t>(p.batches_.size());
  const bool apart =
      batches >= kGroups && p.most_batch_tiles() * passes.tile_bytes() <= kApartBytes;
  std::vector<double> partial(kGroups * p.n_), losses(batches);
  std::vector<BatchMemory<T>> memory(apart ? parallel.workers : 1);
  const auto take = [&](int64_t b, int workers, const Groups& groups, BatchMemory<T>& own,
                        const std::vector<double*>& sums) {
    std::vector<BatchTile<T>> tiles;
    for (int64_t t = p.batch_tile_[b]; t < p.batch_tile_[b + 1]; ++t)
      tiles.push_back({p.tile_data(t), nullptr, p.padded_columns(t), p.tile_columns(t),
                       p.tile_first_[t] - p.tile_first_[p.batch_tile_[b]], p.targets(t)});
    losses[b] = passes.gradient(tiles, theta_, nullptr, workers, groups, own, sums.data());
  };
  bool done = true;
  if (apart) {
    const Groups serial = [](int64_t groups, const std::function<void(int, int64_t)>& body) {
      for (int64_t g = 0; g < groups; ++g) body(-1, g);
    };
    Items items(kGroups, parallel, stop);
    done = items.run([&](int worker, int64_t group) {
      const std::vector<double*> sums(kGroups, partial.data() + group * p.n_);
      const int64_t last = (group + 1) * batches / kGroups;
      for (int64_t b = group * batches / kGroups; b < last && !items.stopping(); ++b)
        take(b, 1, serial, memory[worker], sums);
    });
  } else {
    std::vector<double*> sums;
    for (int64_t g = 0; g < kGroups; ++g) sums.push_back(partial.data() + g * p.n_);
    const Groups spread = [&](int64_t groups, const std::function<void(int, int64_t)>& body) {
      done = Items(groups, parallel, stop).run(body) && done;
    };
    for (int64_t b = 0; b < batches && done; ++b)
      take(b, parallel.workers, spread, memory[0], sums);
  }
  if (!done) throw Stopped();
  loss_ = std::accumulate(losses.begin(), losses.end(), 0.0);
  gradient_.assign(p.n_, 0.0);
  for (int64_t g = 0; g < kGroups; ++g) add(p.n_, partial.data() + g * p.n_, gradient_.data());
}

template <typename T>
void Derivatives<T>::require_apart() const {
  if (program_.mixes()) throw std::invalid_argument("Derivatives: statistics of the batch");
}

template <typename T>
Primal<T> Derivatives<T>::new_primal() const {
  const int64_t size = layout_.rows * program_.tile_, bent = layout_.bent_rows * program_.tile_;
  return {Buffer<T>(size), Buffer<T>(size),            Buffer<T>(bent),
          Buffer<T>(bent), Buffer<T>(layout_.columns), Buffer<T>(layout_.panels)};
}

template <typename T>
typename Derivatives<T>::Work& Derivatives<T>::ready(Work& work, bool primal) const {
  if (work.tangents.empty()) {
    const int64_t size = layout_.rows * program_.tile_;
    for (int64_t b = 0; b < block_; ++b)
      work.tangents.push_back({Buffer<T>(size), Buffer<T>(size)});
    work.columns = Buffer<T>(layout_.most_columns), work.panels = Buffer<T>(layout_.panels);
    work.dots = Buffer<T>(program_.tile_);
    if (primal) work.primal = new_primal();
  }
  return work;
}

template <typename T>
bool Derivatives<T>::products(Matrix matrix, int64_t k, const T* vectors, double scale,
                              double* out, const Parallel& parallel, const ShouldStop& stop) {
  require_apart();
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const int64_t n = program_.n_;
  const int64_t fit = kPartialBytes / (groups_ * n * static_cast<int64_t>(sizeof(double)));
  const int64_t most = std::clamp<int64_t>(fit / block_ * block_, block_, kInFlight);
  if (works_.size() < static_cast<size_t>(parallel.workers)) works_.resize(parallel.workers);
  for (int64_t start = 0; start < k; start += most) {
    const int64_t count = std::min(most, k - start), blocks = (count + block_ - 1) / block_;
    if (vectors_.size() < static_cast<size_t>(count)) vectors_.resize(count);
    partial_.resize(std::max<size_t>(partial_.size(), count * groups_ * n));
    Items(count, parallel, {}).run(
        [&](int, int64_t j) {
          pack_parameters<T>(program_, layout_, vectors + (start + j) * n, nullptr, vectors_[j]);
        });
    const auto sums = [&](int64_t j, int64_t g) { return partial_.data() + (j * groups_ + g) * n; };
    Items items(blocks * groups_, parallel, stop);
    const bool done = items.run([&](int worker, int64_t item) {
      Work& work = ready(works_[worker], !kept());
      const int64_t group = item % groups_, part = item / groups_;
      const int64_t first = count * part / blocks, last = count * (part + 1) / blocks;
      for (int64_t j = first; j < last; ++j) std::fill_n(sums(j, group), n, 0.0);
      if (!layout_.moves[program_.output_]) return;  // no parameter reaches the output
      for (int64_t t = group_begin(group); t < group_begin(group + 1) && !items.stopping(); ++t) {
        if (!kept()) primal(t, work.primal, nullptr);
        const Primal<T>& at_theta = kept() ? kept_[t] : work.primal;
        // All forward, then all backward: each half reads its own large matrices of the tile.
        for (int64_t j = first; j < last; ++j) {
          const Tangents<T>& tangents = work.tangents[j - first];
          tangent_forward(t, at_theta, vectors_[j], tangents);
          seed(matrix, t, at_theta, tangents, work);
        }
        for (int64_t j = first; j < last; ++j) {
          const Tangents<T>& tangents = work.tangents[j - first];
          if (matrix == Matrix::kHessian)
            tangent_reverse(t, at_theta, vectors_[j], tangents, work, sums(j, group));
          else
            reverse(t, at_theta, tangents.adjoints, work.panels.data(), sums(j, group));
        }
      }
    });
    if (!done) return false;
    Items(count, parallel, {}).run([&](int, int64_t j) {
      double* row = out + (start + j) * n;
      std::copy_n(sums(j, 0), n, row);
      for (int64_t g = 1; g < groups_; ++g) add(n, sums(j, g), row);
      for (int64_t i = 0; i < n; ++i) row[i] *= scale;
    });
  }
  return true;
}

template <typename T>
bool Derivatives<T>::sample_gradients(T* out, const Parallel& parallel,
                                      const ShouldStop& stop) const {
  require_apart();
  const Program<T>& p = program_;
  std::vector<Primal<T>> own(kept() ? 0 : parallel.workers);
  return Items(p.tiles_, parallel, stop).run([&](int worker, int64_t t) {
    T* rows = out + t * p.tile_ * p.n_;
    std::fill_n(rows, p.tile_columns(t) * p.n_, T(0));
    if (kept()) return add_sample_gradients(t, kept_[t], rows);
    if (own[worker].values.size() == 0) own[worker] = new_primal();
    primal(t, own[worker], nullptr);
    add_sample_gradients(t, own[worker], rows);
  });
}

template class Derivatives<float>;
template class Derivatives<double>;

}  // namespace pylandscape
