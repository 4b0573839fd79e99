#include "lanczos/host_rows.h"

#include <algorithm>
#include <cmath>

#include "cpu/directions.h"

namespace pylandscape {

template <typename B>
HostRows<B>::HostRows(int64_t n, int64_t starts, int64_t capacity, B* basis, uint64_t seed)
    : n_(n), starts_(starts), capacity_(capacity), basis_(basis), passes_(n), seed_(seed) {}

template <typename B>
typename HostRows<B>::Pass HostRows<B>::pass_of(const Job& job) const {
  Pass pass;
  pass.basis = row(job.start, 0), pass.rows = job.rows, pass.w = row(job.start, job.rows);
  pass.in = job.in, pass.norm = job.norm;
  return pass;
}

template <typename B>
void HostRows<B>::run(const Jobs& jobs, std::vector<Pass>& passes, Passes how) {
  std::vector<Pass*> all;
  for (Pass& pass : passes) all.push_back(&pass);
  (passes_.*how)(all, parallel);
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->in = std::move(passes[i].in), jobs[i]->out = std::move(passes[i].out);
    jobs[i]->norm = passes[i].norm;
  }
}

template <typename B>
bool HostRows<B>::multiply(const Jobs& jobs) {
  if (products_.size() == 0) {
    if (starts_ > 1) inputs_ = Buffer<B>(starts_ * n_);
    products_ = Buffer<double>(starts_ * n_);
  }
  const int64_t active = static_cast<int64_t>(jobs.size());
  const auto newest = [&](int64_t a) { return row(jobs[a]->start, jobs[a]->rows - 1); };
  for (int64_t a = 0; active > 1 && a < active; ++a)
    std::copy_n(newest(a), n_, inputs_.data() + a * n_);
  return product(active, active > 1 ? inputs_.data() : newest(0), products_.data());
}

template <typename B>
void HostRows<B>::advance(const Jobs& jobs, bool removes) {
  const int64_t active = static_cast<int64_t>(jobs.size());
  const auto p = [&](int64_t a) { return products_.data() + a * n_; };
  std::vector<std::pair<const B*, const double*>> pairs;
  for (int64_t a = 0; a < active; ++a)
    pairs.push_back({row(jobs[a]->start, jobs[a]->rows - 1), p(a)});
  const std::vector<double> alphas = passes_.dots(pairs, parallel);
  Jobs finite;
  std::vector<Pass> passes;
  for (int64_t a = 0; a < active; ++a) {
    Job& job = *jobs[a];
    job.alpha = alphas[a];
    if (!std::isfinite(job.alpha)) continue;
    Pass pass = pass_of(job);
    pass.from = p(a), pass.local = job.local, pass.measures = removes;
    pass.local.push_back(job.alpha);
    pass.first_local = job.rows - static_cast<int64_t>(pass.local.size());
    finite.push_back(&job), passes.push_back(std::move(pass));
  }
  run(finite, passes, removes ? &BasisPasses<B>::orthogonalize : &BasisPasses<B>::project);
}

template <typename B>
void HostRows<B>::project(const Jobs& jobs) {
  std::vector<Pass> passes;
  for (const Job* job : jobs) passes.push_back(pass_of(*job));
  run(jobs, passes, &BasisPasses<B>::project);
}

template <typename B>
void HostRows<B>::orthogonalize(const Jobs& jobs) {
  std::vector<Pass> passes;
  for (const Job* job : jobs) passes.push_back(pass_of(*job));
  run(jobs, passes, &BasisPasses<B>::orthogonalize);
}

template <typename B>
void HostRows<B>::remove(const Jobs& jobs) {
  std::vector<Pass> passes;
  for (const Job* job : jobs) passes.push_back(pass_of(*job));
  run(jobs, passes, &BasisPasses<B>::remove);
}

template <typename B>
void HostRows<B>::normalize(const Jobs& jobs) {
  std::vector<Pass> passes;
  for (const Job* job : jobs) passes.push_back(pass_of(*job));
  std::vector<Pass*> all;
  for (Pass& pass : passes) all.push_back(&pass);
  passes_.normalize(all, parallel);
}

template <typename B>
void HostRows<B>::draw(const Job& job, int attempt) {
  constexpr int64_t kBlock = 4096;
  const uint64_t stream = fresh_stream(job.start, job.rows, attempt);
  B* const w = row(job.start, job.rows);
  Items((n_ + kBlock - 1) / kBlock, parallel, {}).run([&](int, int64_t item) {
    const int64_t first = item * kBlock, count = std::min(kBlock, n_ - first);
    float drawn[kBlock];
    cpu::direction_kernels<float>().draw(seed_, stream, first, count, drawn, nullptr);
    std::copy_n(drawn, count, w + first);
  });
}

template class HostRows<float>;
template class HostRows<double>;

}  // namespace pylandscape
