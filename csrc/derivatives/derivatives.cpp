#include "derivatives/derivatives.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "derivatives/parameters.h"
#include "derivatives/weight_sums.h"
#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kInFlight = 16;                      // vectors at once
constexpr int64_t kPartialBytes = int64_t{256} << 20;  // of their partial sums at most
constexpr int64_t kBlock = 8;                          // vectors that a tile takes together at most
// Of the tangents of such a block at most: where values at theta are kept, and where they are
// computed anew for every block.
constexpr int64_t kBlockBytes = int64_t{1} << 20;
constexpr int64_t kRecomputeBytes = int64_t{1} << 26;

// Batches that take no more are divided among the groups, instead of the tiles of each.
constexpr int64_t kApartBytes = int64_t{256} << 20;
// Of the tangents that a batch takes at once, where its values at theta are computed anew for them.
constexpr int64_t kBatchBytes = int64_t{1} << 28;

void add(int64_t n, const double* x, double* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

}  // namespace

template <typename T>
Derivatives<T>::Derivatives(const Program<T>& program, const T* theta, int64_t memory,
                            Heir<T>* from, const Parallel& parallel, const ShouldStop& stop)
    : program_(program),
      kernels_(program.kernels_),
      groups_(sum_groups(program, program.samples_, program.tiles_)),
      divisible_(program.divisible()),
      layout_(program, program.tile_, program.kernels_.vector_length) {
  if (from != nullptr) memory_ = from->take();
  const Program<T>& p = program_;
  pack_parameters(p, layout_, theta, p.constants_.data(), theta_);
  if (p.mixes()) {
    take_batches(memory, parallel, stop);
    return;
  }
  const int64_t bytes =
      (2 * (layout_.rows + layout_.bent_rows) * p.tile_ + layout_.columns + layout_.panels) *
      static_cast<int64_t>(sizeof(T));
  keeps_ = std::clamp<int64_t>(memory / std::max<int64_t>(1, bytes), 0, p.tiles_);
  kept_.resize(p.tiles_);
  const int64_t tangents = std::max<int64_t>(1, 2 * layout_.rows * p.tile_ * int64_t{sizeof(T)});
  block_ = std::clamp<int64_t>((keeps_all() ? kBlockBytes : kRecomputeBytes) / tangents, 1, kBlock);

  late_ = LateSums::of(p, layout_, kernels_, p.tile_, groups_);
  // Where sums are late, memory that no one touches: half of the time would go to its pages.
  const std::unique_ptr<double[]> partial(new double[groups_ * p.n_]);
  const auto sums = [&](int64_t group) { return partial.get() + group * p.n_; };
  std::vector<double> losses(groups_);
  std::vector<Buffer<T>> waiting(late_.any() && !keeps_all() ? groups_ * late_.run : 0);
  if (works_.size() < static_cast<size_t>(parallel.workers)) works_.resize(parallel.workers);
  gradient_.assign(p.n_, 0.0);
  const int64_t longest = (p.tiles_ + groups_ - 1) / groups_;  // tiles of a group
  const int64_t step = waiting.empty() ? longest : late_.run;
  NextPoll poll{};
  const Division division(groups_, divisible_, parallel);
  for (int64_t from = 0; from < longest; from += step) {
    Items items(groups_, division.items, stop, &poll);
    const bool done = items.run([&](int worker, int64_t group) {
      if (from == 0)
        for (const auto& [begin, end] : late_.others)
          std::fill(sums(group) + begin, sums(group) + end, 0.0);
      const int64_t first = group_begin(group) + from;
      const int64_t last = std::min(first + step, group_begin(group + 1));
      for (int64_t t = first; t < last && !items.stopping(); ++t) {
        Primal<T>& to = keeps(t) ? kept_[t] : works_[worker].primal;
        if (to.values.size() == 0) to = new_primal();
        losses[group] += primal(t, to, sums(group), division.helpers);
        to.has_data = keeps(t);
        if (waiting.empty() || keeps(t)) continue;
        Buffer<T>& own = waiting[group * late_.run + t - first];
        if (own.size() == 0) own = Buffer<T>(late_.size);
        for (const LateSums::Place& at : late_.places) {
          std::copy_n(to.panels.data() + layout_.panels_at[at.op], at.panels_size,
                      own.data() + at.panels);
          std::copy_n(to.columns.data() + layout_.columns_at[at.op], at.columns_size,
                      own.data() + at.columns);
        }
      }
    });
    if (!done || !add_late(from, std::min(from + step, longest), waiting, parallel, stop, poll))
      throw Stopped();
  }
  loss_ = std::accumulate(losses.begin(), losses.end(), 0.0);
  for (int64_t g = 0; g < groups_; ++g)
    for (const auto& [begin, end] : late_.others)
      add(end - begin, sums(g) + begin, gradient_.data() + begin);
}

template <typename T>
bool Derivatives<T>::add_late(int64_t from, int64_t to, const std::vector<Buffer<T>>& waiting,
                              const Parallel& parallel, const ShouldStop& stop,
                              NextPoll& poll) {
  const auto strips = static_cast<int64_t>(late_.strips.size());
  return Items(strips, parallel, stop, &poll).run([&](int, int64_t item) {
    const LateSums::Strip& strip = late_.strips[item];
    const Op& op = program_.ops()[strip.op];
    double* g = gradient_.data() + program_.uses()[op.weight].source + strip.first;
    const auto at = std::find_if(late_.places.begin(), late_.places.end(),
                                 [&](const LateSums::Place& p) { return p.op == strip.op; });
    std::vector<const T*> dy, x;
    std::vector<int64_t> cols;
    for (int64_t run = from; run < to; run += late_.run)
      for (int64_t group = 0; group < groups_; ++group) {
        dy.clear(), x.clear(), cols.clear();
        const int64_t first = group_begin(group) + run;
        const int64_t last = std::min(first + late_.run, group_begin(group + 1));
        for (int64_t t = first; t < last; ++t) {
          const T *panels, *columns;
          if (keeps(t)) {
            panels = kept_[t].panels.data() + layout_.panels_at[strip.op];
            columns = kept_[t].columns.data() + layout_.columns_at[strip.op];
          } else {
            const T* own = waiting[group * late_.run + t - first].data();
            panels = own + at->panels, columns = own + at->columns;
          }
          cols.push_back(program_.padded_columns(t));
          dy.push_back(panels), x.push_back(columns + strip.first * cols.back());
        }
        kernels_.outer_add(op.m, strip.width, op.k, static_cast<int64_t>(dy.size()), cols.data(),
                           dy.data(), x.data(), g);
      }
  });
}

template <typename T>
template <typename F>
bool Derivatives<T>::each_batch(const Parallel& parallel, const ShouldStop& stop, F take) {
  const Program<T>& p = program_;
  const auto batches = static_cast<int64_t>(p.batches_.size());
  batch_works_.resize(std::max<size_t>(batch_works_.size(), apart_ ? parallel.workers : 1));
  const auto one = [&](int64_t b, const Groups& groups, BatchWork& work, int64_t group) {
    std::vector<BatchTile<T>> tiles;
    for (int64_t t = p.batch_tile_[b]; t < p.batch_tile_[b + 1]; ++t)
      tiles.push_back({p.tile_data(t), nullptr, p.padded_columns(t), p.tile_columns(t),
                       p.tile_first_[t] - p.tile_first_[p.batch_tile_[b]], p.targets(t)});
    take(b, typename BatchPasses<T>::Call{tiles, theta_, nullptr, groups, work.scratch}, work,
         group);
  };
  if (apart_) {
    const Groups serial = [](int64_t groups, const std::function<void(int, int64_t)>& body) {
      for (int64_t g = 0; g < groups; ++g) body(-1, g);
    };
    Items items(groups_, parallel, stop);
    return items.run([&](int worker, int64_t group) {
      BatchWork& work = batch_works_[worker];
      work.scratch.resize(1);
      const int64_t last = (group + 1) * batches / groups_;
      for (int64_t b = group * batches / groups_; b < last && !items.stopping(); ++b)
        one(b, serial, work, group);
    });
  }
  bool done = true;
  const Groups spread = [&](int64_t groups, const std::function<void(int, int64_t)>& body) {
    done = done && Items(groups, parallel, stop).run(body);
  };
  batch_works_[0].scratch.resize(std::max<size_t>(batch_works_[0].scratch.size(), parallel.workers));
  for (int64_t b = 0; b < batches && done; ++b) one(b, spread, batch_works_[0], -1);
  return done;
}

template <typename T>
std::vector<double*> Derivatives<T>::batch_sums(double* partial, int64_t group) const {
  std::vector<double*> sums;
  for (int64_t g = 0; g < kMostGroups; ++g)
    sums.push_back(partial + (group < 0 ? std::min(g, groups_ - 1) : group) * program_.n_);
  return sums;
}

template <typename T>
Derivatives<T>::~Derivatives() {
  if (const std::shared_ptr<Heir<T>> heir = heir_.lock()) heir->give(std::move(memory_));
}

// Loss and gradient of batches whose samples depend on each other.
template <typename T>
void Derivatives<T>::take_batches(int64_t memory, const Parallel& parallel,
                                  const ShouldStop& stop) {
  const Program<T>& p = program_;
  passes_.emplace(p, layout_, p.tile_);
  const auto batches = static_cast<int64_t>(p.batches_.size());
  const int64_t most = p.most_batch_tiles();
  apart_ = batches >= kLeastGroups && most * passes_->tile_bytes() <= kApartBytes;
  groups_ = apart_ ? std::min(groups_, batches)
                   : sum_groups(p, std::min(p.samples_, most * p.tile_), most);
  const int64_t fit = memory / std::max<int64_t>(1, passes_->tile_bytes());  // tiles
  while (kept_until_ < batches && p.batch_tile_[kept_until_ + 1] <= fit) ++kept_until_;
  kept_batches_.resize(batches);
  const int64_t tangents = std::max<int64_t>(1, most * passes_->tile_tangent_bytes());
  const int64_t room = kept_until_ == batches ? kBlockBytes : kBatchBytes;
  block_ = std::clamp<int64_t>(room / tangents, 1, kBlock);
  std::vector<double> partial(groups_ * p.n_), losses(batches);
  const bool done = each_batch(
      parallel, stop,
      [&](int64_t b, const typename BatchPasses<T>::Call& call, BatchWork& work, int64_t group) {
        const std::vector<double*> sums = batch_sums(partial.data(), group);
        const bool keep = keeps_batch(b);
        losses[b] = passes_->gradient(call, keep ? kept_batches_[b] : work.memory, sums.data(), keep);
      });
  if (!done) throw Stopped();
  loss_ = std::accumulate(losses.begin(), losses.end(), 0.0);
  gradient_.assign(p.n_, 0.0);
  for (int64_t g = 0; g < groups_; ++g) add(p.n_, partial.data() + g * p.n_, gradient_.data());
}

// All vectors of a call go through one batch before the next, as far as there is room for their sums.
template <typename T>
bool Derivatives<T>::batch_products(Matrix matrix, int64_t k, const T* vectors, double scale,
                                    double* out, const Parallel& parallel,
                                    const ShouldStop& stop) {
  const int64_t n = program_.n_, most = most_at_once();
  for (int64_t start = 0; start < k; start += most) {
    const int64_t count = std::min(most, k - start);
    take_vectors(count, vectors + start * n, parallel);
    partial_.assign(count * groups_ * n, 0.0);
    const bool done = each_batch(
        parallel, stop,
        [&](int64_t b, const typename BatchPasses<T>::Call& call, BatchWork& work, int64_t group) {
          const bool keep = keeps_batch(b);
          if (!keep) passes_->gradient(call, work.memory, nullptr, true);
          work.tangents.resize(block_);
          for (int64_t first = 0; first < count; first += block_) {
            const int64_t taken = std::min(block_, count - first);
            std::vector<std::vector<double*>> sums;
            for (int64_t j = 0; j < taken; ++j)
              sums.push_back(batch_sums(partial_.data() + (first + j) * groups_ * n, group));
            passes_->products(matrix, call, keep ? kept_batches_[b] : work.memory, taken,
                              vectors_.data() + first, work.tangents.data(), sums);
          }
        });
    if (!done) return false;
    Items(count, parallel, {}).run([&](int, int64_t j) {
      double* row = out + (start + j) * n;
      std::fill_n(row, n, 0.0);
      for (int64_t g = 0; g < groups_; ++g) add(n, partial_.data() + (j * groups_ + g) * n, row);
      for (int64_t i = 0; i < n; ++i) row[i] *= scale;
    });
  }
  return true;
}

template <typename T>
void Derivatives<T>::require_apart() const {
  if (program_.mixes()) throw std::invalid_argument("Derivatives: statistics of the batch");
}

template <typename T>
int64_t Derivatives<T>::most_at_once() const {
  const int64_t fit = kPartialBytes / (groups_ * program_.n_ * static_cast<int64_t>(sizeof(double)));
  return std::clamp<int64_t>(fit / block_ * block_, block_, kInFlight);
}

template <typename T>
Primal<T> Derivatives<T>::new_primal() const {
  const int64_t size = layout_.rows * program_.tile_, bent = layout_.bent_rows * program_.tile_;
  return {Buffer<T>(size), Buffer<T>(size),            Buffer<T>(bent),
          Buffer<T>(bent), Buffer<T>(layout_.columns), Buffer<T>(layout_.panels)};
}

template <typename T>
typename Derivatives<T>::Work& Derivatives<T>::ready(Work& work) const {
  if (work.tangents.empty()) {
    const int64_t size = layout_.rows * program_.tile_;
    for (int64_t b = 0; b < block_; ++b)
      work.tangents.push_back({Buffer<T>(size), Buffer<T>(size)});
    work.columns = Buffer<T>(layout_.most_columns), work.panels = Buffer<T>(layout_.panels);
    work.dots = Buffer<T>(program_.tile_);
    for (int64_t b = 0; layout_.any_direct() && block_ > 1 && b < block_; ++b)
      work.waiting_panels.emplace_back(layout_.panels);
  }
  if (!keeps_all() && work.primal.values.size() == 0) work.primal = new_primal();
  return work;
}

template <typename T>
void Derivatives<T>::take_vectors(int64_t count, const T* vectors, const Parallel& parallel) {
  if (vectors_.size() < static_cast<size_t>(count)) vectors_.resize(count);
  Items(count, parallel, {}).run([&](int, int64_t j) {
    pack_parameters<T>(program_, layout_, vectors + j * program_.n_, nullptr, vectors_[j]);
  });
}

template <typename T>
template <typename Begin, typename Tile>
bool Derivatives<T>::each_share(int64_t count, const Parallel& parallel, const ShouldStop& stop,
                                const Begin& begin, const Tile& tile) {
  const int64_t blocks = (count + block_ - 1) / block_;
  if (works_.size() < static_cast<size_t>(parallel.workers)) works_.resize(parallel.workers);
  const Division division(blocks * groups_, divisible_, parallel);
  Items items(blocks * groups_, division.items, stop);
  return items.run([&](int worker, int64_t item) {
    Work& work = ready(works_[worker]);
    const int64_t group = item % groups_, part = item / groups_;
    const Share share{group, count * part / blocks, count * (part + 1) / blocks, division.helpers};
    begin(work, share);
    if (!layout_.moves[program_.output_]) return;  // no parameter reaches the output
    for (int64_t t = group_begin(group); t < group_begin(group + 1) && !items.stopping(); ++t) {
      if (!keeps(t)) primal(t, work.primal, nullptr, share.helpers);
      tile(work, share, t, keeps(t) ? kept_[t] : work.primal);
    }
  });
}

template <typename T>
bool Derivatives<T>::products(Matrix matrix, int64_t k, const T* vectors, double scale,
                              double* out, const Parallel& parallel, const ShouldStop& stop) {
  if (matrix == Matrix::kCovariance) require_apart();
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  if (passes_) return batch_products(matrix, k, vectors, scale, out, parallel, stop);
  const int64_t n = program_.n_, most = most_at_once();
  for (int64_t start = 0; start < k; start += most) {
    const int64_t count = std::min(most, k - start);
    take_vectors(count, vectors + start * n, parallel);
    partial_.resize(std::max<size_t>(partial_.size(), count * groups_ * n));
    const auto sums = [&](int64_t j, int64_t g) { return partial_.data() + (j * groups_ + g) * n; };
    const auto clear = [&](Work&, const Share& of) {
      for (int64_t j = of.first; j < of.last; ++j) std::fill_n(sums(j, of.group), n, 0.0);
    };
    const auto tile = [&](Work& work, const Share& of, int64_t t, const Primal<T>& at_theta) {
      // All forward, then all backward: each half reads its own large matrices of the tile.
      for (int64_t j = of.first; j < of.last; ++j) {
        const Tangents<T>& tangents = work.tangents[j - of.first];
        tangent_forward(t, at_theta, vectors_[j], tangents, {of.helpers});
        seed(matrix, t, at_theta, tangents, work);
      }
      const bool several = of.last - of.first > 1;
      const Waiting waiting = several && layout_.any_direct() ? &work.waiting : nullptr;
      for (int64_t j = of.first; j < of.last; ++j) {
        const Tangents<T>& tangents = work.tangents[j - of.first];
        T* panels = waiting ? work.waiting_panels[j - of.first].data() : work.panels.data();
        if (matrix == Matrix::kHessian)
          tangent_reverse(t, at_theta, vectors_[j], tangents, work, panels, sums(j, of.group),
                          {of.helpers, waiting});
        else
          reverse(t, at_theta, tangents.adjoints, panels, sums(j, of.group),
                  {of.helpers, waiting});
      }
      add_direct_sums(program_, kernels_, program_.tile_data(t), program_.padded_columns(t),
                      work.waiting);
      work.waiting.clear();
    };
    if (!each_share(count, parallel, stop, clear, tile)) return false;
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
bool Derivatives<T>::forms(Matrix matrix, int64_t k, const T* vectors, double scale, double* out,
                           const Parallel& parallel, const ShouldStop& stop) {
  const int64_t n = program_.n_, most = most_at_once();
  if (passes_) {  // tangents meet at the norms: by products
    std::vector<double> rows(std::min(k, most) * n);
    for (int64_t start = 0; start < k; start += most) {
      const int64_t count = std::min(most, k - start);
      const T* from = vectors + start * n;
      if (!products(matrix, count, from, scale, rows.data(), parallel, stop)) return false;
      for (int64_t j = 0; j < count; ++j)
        out[start + j] = kernels_.dot_double(n, from + j * n, rows.data() + j * n);
    }
    return true;
  }
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  for (int64_t start = 0; start < k; start += most) {
    const int64_t count = std::min(most, k - start);
    const T* given = vectors + start * n;
    take_vectors(count, given, parallel);
    std::vector<double> parts(count * groups_, 0.0);
    const auto make_room = [&](Work& work, const Share&) { work.sums.resize(n); };
    const auto tile = [&](Work& work, const Share& of, int64_t t, const Primal<T>& at_theta) {
      for (int64_t j = of.first; j < of.last; ++j) {
        const Tangents<T>& tangents = work.tangents[j - of.first];
        tangent_forward(t, at_theta, vectors_[j], tangents, {of.helpers});
        seed(matrix, t, at_theta, tangents, work);
        parts[j * groups_ + of.group] += form(matrix, t, at_theta, vectors_[j], given + j * n,
                                              tangents, work, {of.helpers});
      }
    };
    if (!each_share(count, parallel, stop, make_room, tile)) return false;
    for (int64_t j = 0; j < count; ++j) {
      const double* own = parts.data() + j * groups_;
      out[start + j] = scale * std::accumulate(own, own + groups_, 0.0);
    }
  }
  return true;
}

template <typename T>
bool Derivatives<T>::sample_gradients(T* out, const Parallel& parallel,
                                      const ShouldStop& stop) const {
  require_apart();
  const Program<T>& p = program_;
  std::vector<Primal<T>> own(keeps_all() ? 0 : parallel.workers);
  return Items(p.tiles_, parallel, stop).run([&](int worker, int64_t t) {
    T* rows = out + t * p.tile_ * p.n_;
    std::fill_n(rows, p.tile_columns(t) * p.n_, T(0));
    if (keeps(t)) return add_sample_gradients(t, kept_[t], rows);
    if (own[worker].values.size() == 0) own[worker] = new_primal();
    primal(t, own[worker], nullptr, nullptr);
    add_sample_gradients(t, own[worker], rows);
  });
}

template class Derivatives<float>;
template class Derivatives<double>;

}  // namespace pylandscape
