#include "training/training.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "derivatives/parameters.h"
#include "derivatives/weight_sums.h"
#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kWholeBytes = 1 << 30;       // of mini-batches that stay in memory as a whole
constexpr int64_t kGatheredBytes = 4 << 20;    // of mini-batches gathered ahead

}  // namespace

template <typename T>
Training<T>::Training(const Program<T>& program, const Rule& rule, const double* counts,
                      int64_t statistics)
    : program_(program),
      kernels_(program.kernels_),
      rule_(rule),
      n_(program.n_ - statistics),
      statistics_(statistics),
      widest_(widest_tile(program, kernels_.vector_length, sizeof(T))),
      layout_(program, widest_, kernels_.vector_length),
      batches_(program, counts, widest_,
               data_columns(program, layout_, widest_, kernels_.vector_length)),
      passes_(program, layout_, widest_),
      mixes_(program.mixes()),
      divisible_(!mixes_ && program.divisible()) {
  for (const size_t i : passes_.own()) {
    const Norm& norm = program.ops_[i].norm;
    const bool kept = norm.keep_mean < 0 || std::min(norm.keep_mean, norm.keep_variance) >= n_;
    if (!kept) throw std::invalid_argument("Training: kept statistics that are no statistics");
  }
}

// The sum of the tile's loss terms; sums (n,) += its gradient.
template <typename T>
double Training<T>::tile(const Gathered<T>& batch, int64_t number, const Vector<T>& theta,
                         const Draw& draw, Tile& to, const Parallel* helpers,
                         double* sums) const {
  const Program<T>& p = program_;
  Primal<T>& primal = to.primal;
  if (primal.values.size() == 0) {
    const int64_t size = layout_.rows * widest_, bent = layout_.bent_rows * widest_;
    primal = {Buffer<T>(size), Buffer<T>(size), Buffer<T>(bent), Buffer<T>(bent),
              Buffer<T>(layout_.columns), Buffer<T>(layout_.panels)};
    to.terms.resize(widest_);
  }
  const int64_t cols = batches_.padded(batch, number), samples = batches_.columns(batch, number);
  const Draw own{draw.seed, draw.step, number * batch.tile};
  const auto pass = [&](size_t i) -> Pass<T> {
    return {p, layout_, kernels_, theta, primal, batches_.data(batch, number), widest_, cols,
            samples, i, p.ops_[i], batches_.columns_of(batch, number), &own,
            nullptr, nullptr, nullptr, nullptr, helpers};
  };
  to.slots.assign(p.slots_.size(), nullptr);
  to.slots[0] = batches_.data(batch, number);
  walk_forward(all_ops(p), pass, primal, to.slots.data());
  const T* output = p.output_ == 0 ? batches_.data(batch, number)
                                   : primal.values.data() + layout_.row[p.output_] * widest_;
  const cpu::Targets targets = batches_.targets(batch, number);
  kernels_.loss(p.loss_, targets, cols, output, to.terms.data(), nullptr);
  const double loss = std::accumulate(to.terms.begin(), to.terms.begin() + samples, 0.0);
  if (!layout_.moves[p.output_]) return loss;  // no parameter reaches the output
  for (size_t s = 1; s < p.slots_.size(); ++s)
    if (layout_.row[s] >= 0 && layout_.moves[s])
      std::fill_n(primal.adjoints.data() + layout_.row[s] * widest_, p.slots_[s] * cols, T(0));
  T* seed = primal.adjoints.data() + layout_.row[p.output_] * widest_;
  kernels_.loss_gradient(p.loss_, targets, cols, output, seed);
  clear_padding(p.slots_[p.output_], cols, samples, seed);
  walk_reverse(p, layout_, all_ops(p), pass, primal.adjoints, primal.panels.data(), sums);
  return loss;
}

template <typename T>
double Training<T>::whole_batch(const Gathered<T>& batch, const Draw& draw, Work& work,
                                const Groups& groups, double* const* sums) const {
  std::vector<BatchTile<T>> tiles;
  for (int64_t t = 0; t < batch.tiles; ++t)
    tiles.push_back({batches_.data(batch, t), batches_.columns_of(batch, t),
                     batches_.padded(batch, t), batches_.columns(batch, t), t * batch.tile,
                     batches_.targets(batch, t)});
  work.scratch.resize(works_.size());
  return passes_.gradient({tiles, work.theta, &draw, groups, work.scratch}, work.memory, sums);
}

// As torch does: with the unbiased variance; a norm that runs several times moves as often. before:
// passes of the run.
template <typename T>
void Training<T>::move_statistics(const BatchMemory<T>& memory, int64_t size, int64_t before,
                                  T* statistics) const {
  const auto norm_of = [&](size_t own) -> const Norm& {
    return program_.ops_[passes_.own()[own]].norm;
  };
  const size_t count = passes_.own().size();
  for (size_t i = 0; i < count; ++i) {
    const Op& op = program_.ops_[passes_.own()[i]];
    if (op.norm.keep_mean < 0) continue;
    int64_t calls = 0, earlier = 0;  // of the same layer in a pass
    for (size_t j = 0; j < count; ++j) {
      const bool same = norm_of(j).keep_mean == op.norm.keep_mean;
      calls += same, earlier += same && j < i;
    }
    const double share = op.norm.momentum >= 0
                             ? op.norm.momentum
                             : 1 / static_cast<double>(before * calls + earlier + 1);
    const auto elements = static_cast<double>(size * op.outer);
    const auto& found = memory.norms[i];
    T *mean = statistics + op.norm.keep_mean - n_, *variance = statistics + op.norm.keep_variance - n_;
    for (int64_t c = 0; c < op.k; ++c) {
      const double unbiased = found.variance[c] * (elements / (elements - 1));
      mean[c] = static_cast<T>(share * found.mean[c] + (1 - share) * mean[c]);
      variance[c] = static_cast<T>(share * unbiased + (1 - share) * variance[c]);
    }
  }
}

// Sums of the loss terms and of their gradients over the batch; moves statistics.
template <typename T>
double Training<T>::gradient(const Gathered<T>& batch, const T* theta, T* statistics,
                             int64_t before, const Draw& draw, Work& work,
                             const Groups& run_groups, const Parallel& threads, double* sums) {
  const int64_t n = program_.n_, groups = sum_groups(program_, batch.samples, batch.tiles);
  const bool first = work.theta.packed.size() == 0;
  if (statistics_ > 0) {
    work.whole.resize(n);
    std::copy_n(statistics, statistics_, std::copy_n(theta, n_, work.whole.data()));
    theta = work.whole.data();
  }
  pack_parameters<T>(program_, layout_, theta, first ? program_.constants_.data() : nullptr,
                     work.theta);
  std::fill_n(sums, n, 0.0);
  if (static_cast<int64_t>(work.partial.size()) < (groups - 1) * n)
    work.partial.resize((groups - 1) * n);
  double losses[kMostGroups] = {};
  if (mixes_) {
    double* parts[kMostGroups] = {sums};
    for (int64_t g = 1; g < groups; ++g) parts[g] = work.partial.data() + (g - 1) * n;
    std::fill_n(work.partial.data(), (groups - 1) * n, 0.0);
    losses[0] = whole_batch(batch, draw, work, run_groups, parts);
    if (statistics_ > 0) move_statistics(work.memory, batch.samples, before, statistics);
  }
  const Parallel* helpers = Division::helpers_of(groups, divisible_, threads);
  if (!mixes_) run_groups(groups, [&](int worker, int64_t group) {
    double* to = group == 0 ? sums : work.partial.data() + (group - 1) * n;
    if (group > 0) std::fill_n(to, n, 0.0);
    Tile& scratch = worker < 0 ? work.tile : works_[worker].tile;
    for (int64_t t = group * batch.tiles / groups; t < (group + 1) * batch.tiles / groups; ++t)
      losses[group] += tile(batch, t, work.theta, draw, scratch, helpers, to);
  });
  for (int64_t g = 1; g < groups; ++g) {
    const double* from = work.partial.data() + (g - 1) * n;
    for (int64_t i = 0; i < n; ++i) sums[i] += from[i];
    losses[0] += losses[g];
  }
  return losses[0];
}

template <typename T>
void Training<T>::step(const Runs<T>& runs, int64_t run, int64_t number, double rate,
                       const Gathered<T>& batch, Work& work, const Groups& groups,
                       const Parallel& threads, double* loss) {
  const int64_t n = n_, done = runs.done + number, passes = rule_.two_stages ? 2 : 1;
  T *theta = runs.theta + run * n, *statistics = runs.statistics + run * statistics_;
  const Draw draw{runs.seeds != nullptr ? static_cast<uint64_t>(runs.seeds[run]) : 0,
                  static_cast<uint64_t>(done), 0};
  if (static_cast<int64_t>(work.sums.size()) < program_.n_) work.sums.resize(program_.n_);
  double* sums = work.sums.data();
  const double sum =
      gradient(batch, theta, statistics, done * passes, draw, work, groups, threads, sums);
  *loss = sum / batch.denominator;
  double scale = batch.scale;
  if (rule_.two_stages) {
    work.moved.resize(n), work.stage.assign(sums, sums + n);
    for (int64_t i = 0; i < n; ++i)
      work.moved[i] = static_cast<T>(theta[i] - rule_.q1 * rate * scale * sums[i]);
    gradient(batch, work.moved.data(), statistics, done * passes + 1, draw, work, groups, threads,
             sums);
    for (int64_t i = 0; i < n; ++i) sums[i] = rule_.a1 * work.stage[i] + rule_.a2 * sums[i];
  }
  if (rule_.clip >= 0) {
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += sums[i] * sums[i];
    const double norm = scale * std::sqrt(squares), factor = rule_.clip / (norm + 1e-6);
    if (!(factor >= 1)) scale *= factor;
  }
  T* slots[2] = {};
  for (size_t i = 0; i < runs.slots.size(); ++i) slots[i] = runs.slots[i] + run * n;
  kernels_.optimise(rule_.at(done, rate), n, scale, sums, theta, slots);
}

template <typename T>
bool Training<T>::advance(const Runs<T>& runs, const std::vector<Indices>& steps,
                          const double* rates, double* losses, const Parallel& parallel,
                          const ShouldStop& stop) {
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const int64_t count = static_cast<int64_t>(steps.size());
  if (works_.size() < static_cast<size_t>(std::max<int64_t>(parallel.workers, 1)))
    works_.resize(parallel.workers);
  const Parallel one{1, nullptr};
  const Groups serial = [](int64_t groups, const std::function<void(int, int64_t)>& body) {
    for (int64_t g = 0; g < groups; ++g) body(-1, g);
  };
  for (int64_t first = 0, last = 0; first < count; first = last) {
    int64_t bytes = 0, shared = 0;
    bool several = false;
    int64_t whole = 0;  // of the largest mini-batch, where it stays in memory
    do {
      const Indices& s = steps[last++];
      if (mixes_) whole = std::max(whole, batches_.tiles(s.size) * passes_.tile_bytes());
      bytes += s.own ? 0 : batches_.bytes(s.size), shared += !s.own;
      several = several || batches_.tiles(s.size) > 1;
    } while (last < count && bytes + batches_.bytes(steps[last].size) <= kGatheredBytes);
    if (gathered_.size() < static_cast<size_t>(last - first)) gathered_.resize(last - first);
    const auto same = [&](int64_t s) {  // as the step before: of a full batch
      return s > first && !steps[s].own && !steps[s - 1].own &&
             steps[s].samples == steps[s - 1].samples && steps[s].size == steps[s - 1].size;
    };
    Items gathering(shared > 0 ? last - first : 0, parallel, stop);
    if (!gathering.run([&](int, int64_t i) {
          const Indices& s = steps[first + i];
          if (!s.own && !same(first + i)) batches_.gather(s.size, s.samples, gathered_[i]);
        }))
      return false;
    const auto batch_of = [&](int64_t s, int64_t run, Work& work) -> const Gathered<T>& {
      if (steps[s].own) {
        batches_.gather(steps[s].size, steps[s].of(run), work.batch);
        return work.batch;
      }
      while (same(s)) --s;
      return gathered_[s - first];
    };
    const int64_t at_once = std::min<int64_t>(runs.count, parallel.workers);
    if (several && (runs.count < parallel.workers || at_once * whole > kWholeBytes)) {
      bool stopped = false;
      const Groups spread = [&](int64_t groups, const std::function<void(int, int64_t)>& body) {
        const Division division(groups, divisible_, parallel);
        stopped = stopped || !Items(groups, division.items, stop).run(body);
      };
      for (int64_t run = 0; run < runs.count; ++run)
        for (int64_t s = first; s < last; ++s) {
          step(runs, run, s, rates[s], batch_of(s, run, works_[0]), works_[0], spread, parallel,
               losses + run * count + s);
          if (stopped) return false;
        }
      continue;
    }
    // Of mini-batches of one tile: those of several are for all threads above, or runs are enough.
    const Division division(runs.count, divisible_ && !several, parallel);
    const Parallel& threads = division.helpers != nullptr ? parallel : one;
    Items items(runs.count, division.items, stop);
    const bool done = items.run([&](int worker, int64_t run) {
      Work& work = works_[worker];
      for (int64_t s = first; s < last && !items.stopping(); ++s)
        step(runs, run, s, rates[s], batch_of(s, run, work), work, serial, threads,
             losses + run * count + s);
    });
    if (!done) return false;
  }
  return true;
}

template class Training<float>;
template class Training<double>;

}  // namespace pylandscape
