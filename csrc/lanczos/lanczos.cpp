#include "lanczos/lanczos.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace pylandscape {
namespace {

constexpr int kMostPasses = 6;      // of `remove` on one vector
constexpr double kRounding = 4;     // ||Q w|| <= kRounding eps ||w|| is orthogonal

template <typename B>
constexpr double kEps = std::numeric_limits<B>::epsilon();

// Where a breakdown is followed by a fresh vector, beta of so many eps ||T|| is the rounding of the
// products: going on with it would show no eigenspace a second time. In float32 that much may
// couple to eigenvalues that are wanted.
template <typename B>
constexpr double kNoise = sizeof(B) == sizeof(double) ? 100 : 4;

double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace

template <typename B>
Lanczos<B>::Lanczos(int64_t n, int64_t starts, int64_t capacity, B* basis, Reorthogonalize mode,
                    bool fresh, uint64_t seed)
    : n_(n), capacity_(capacity), basis_(basis), mode_(mode), fresh_(fresh), random_(seed),
      passes_over_(n), starts_(starts), estimates_(starts) {
  if (n < 1 || starts < 1 || capacity < 2)
    throw std::invalid_argument("Lanczos: expected n >= 1, starts >= 1, capacity >= 2");
}

template <typename B>
void Lanczos<B>::begin(const Parallel& parallel) {
  for (int64_t s = 0; s < count(); ++s) {
    typename BasisPasses<B>::Job job;
    job.basis = job.w = row(s, 0);
    std::vector<typename BasisPasses<B>::Job*> jobs{&job};
    passes_over_.remove(jobs, parallel);
    if (!(job.norm > 0) || !std::isfinite(job.norm))
      throw std::invalid_argument("Lanczos: a start is zero or not finite");
    passes_over_.normalize(jobs, parallel);
    starts_[s] = {};
    estimates_[s] = {{1.0}, {}, false};
  }
}

template <typename B>
void Lanczos<B>::load(int64_t start, Start state) {
  estimates_.at(start) = {std::vector<double>(state.alpha.size() + 1, 0.0),
                          std::vector<double>(state.alpha.size(), 0.0), true};
  estimates_[start].last.back() = 1.0;
  starts_.at(start) = std::move(state);
}

// An estimate of ||T||: the largest row sum.
template <typename B>
double Lanczos<B>::norm_of(const Start& s) const {
  const int64_t kept = static_cast<int64_t>(s.spikes.size());
  double most = 0, coupling = 0;
  for (int64_t i = 0; i < s.steps(); ++i) {
    double sum = std::abs(s.alpha[i]);
    if (i < kept) {
      sum += std::abs(s.spikes[i]);
      coupling += std::abs(s.spikes[i]);
    } else {
      sum += i == kept ? coupling : s.beta[i - 1];
      if (i < static_cast<int64_t>(s.beta.size())) sum += s.beta[i];
    }
    most = std::max(most, sum);
  }
  return most;
}

// Simon's recurrence for omega_{j+1,i} = q_{j+1} . q_i, after row j of T.
template <typename B>
bool Lanczos<B>::needs_reorthogonalization(int64_t start) {
  if (mode_ != Reorthogonalize::kPartial) return mode_ == Reorthogonalize::kFull;
  const Start& s = starts_[start];
  Estimates& e = estimates_[start];
  const int64_t j = s.steps() - 1;
  const double noise = kEps<B> * std::sqrt(double(n_)) * 0.5, beta = s.beta[j];
  if (e.again || !s.spikes.empty()) {
    e.before = std::move(e.last);
    e.last.assign(j + 2, kEps<B>);
    e.last.back() = 1.0;
    e.again = false;
    return true;
  }
  std::vector<double> next(j + 2, noise);
  next[j + 1] = 1.0;
  double worst = 0;
  for (int64_t i = 0; i < j; ++i) {
    double sum = s.beta[i] * e.last[i + 1] + (s.alpha[i] - s.alpha[j]) * e.last[i];
    if (i > 0) sum += s.beta[i - 1] * e.last[i - 1];
    sum -= s.beta[j - 1] * e.before[i];
    next[i] = (sum + std::copysign(noise * beta, sum)) / beta;
    worst = std::max(worst, std::abs(next[i]));
  }
  e.before = std::move(e.last), e.last = std::move(next);
  if (!(worst > std::sqrt(kEps<B>))) return false;
  e.last.assign(j + 2, kEps<B>);
  e.last.back() = 1.0;
  e.again = true;  // two successive vectors, or the loss comes back at once
  return true;
}

template <typename B>
double Lanczos<B>::clean(typename BasisPasses<B>::Job& job, std::vector<double>& total,
                         const Parallel& parallel) {
  std::vector<typename BasisPasses<B>::Job*> jobs{&job};
  for (int pass = 0; pass < kMostPasses; ++pass) {
    if (norm(job.out) <= kRounding * kEps<B> * job.norm) break;
    job.in = job.out;
    for (size_t i = 0; i < total.size(); ++i) total[i] += job.in[i];
    passes_over_.remove(jobs, parallel);
    ++passes_;
  }
  return job.norm;
}

// Row i becomes a random unit vector orthogonal to the rows before it.
template <typename B>
bool Lanczos<B>::fresh_row(int64_t start, int64_t i, const Parallel& parallel) {
  std::normal_distribution<double> normal;
  for (int attempt = 0; attempt < 3; ++attempt) {
    B* w = row(start, i);
    for (int64_t c = 0; c < n_; ++c) w[c] = static_cast<B>(normal(random_));
    typename BasisPasses<B>::Job job;
    job.basis = row(start, 0), job.rows = i, job.w = w;
    std::vector<typename BasisPasses<B>::Job*> jobs{&job};
    passes_over_.project(jobs, parallel);
    job.norm = 0;  // at least one removal
    std::vector<double> unused(i);
    if (!(clean(job, unused, parallel) > kEps<B> * std::sqrt(double(n_)))) continue;
    passes_over_.normalize(jobs, parallel);
    // Scaling up what was left of a long vector scales its rounding too.
    passes_over_.project(jobs, parallel);
    job.norm = 1;
    clean(job, unused, parallel);
    passes_over_.normalize(jobs, parallel);
    return true;
  }
  return false;
}

template <typename B>
bool Lanczos<B>::run(int64_t steps, const Product& product, const Parallel& parallel) {
  using Job = typename BasisPasses<B>::Job;
  const int64_t most = std::min(steps, most_steps());
  if (products_.size() == 0) {
    if (count() > 1) inputs_ = Buffer<B>(count() * n_);
    products_ = Buffer<double>(count() * n_);
  }
  for (;;) {
    std::vector<int64_t> running;
    for (int64_t s = 0; s < count(); ++s)
      if (starts_[s].outcome == Outcome::kRunning && starts_[s].steps() < most) running.push_back(s);
    if (running.empty()) return true;
    const int64_t active = static_cast<int64_t>(running.size());
    const auto p = [&](int64_t a) { return products_.data() + a * n_; };
    const auto newest = [&](int64_t a) { return row(running[a], starts_[running[a]].steps()); };
    for (int64_t a = 0; active > 1 && a < active; ++a)
      std::copy_n(newest(a), n_, inputs_.data() + a * n_);
    if (!product(active, active > 1 ? inputs_.data() : newest(0), products_.data())) return false;

    std::vector<std::pair<const B*, const double*>> pairs;
    for (int64_t a = 0; a < active; ++a) pairs.push_back({newest(a), p(a)});
    const std::vector<double> alphas = passes_over_.dots(pairs, parallel);

    // w = A q_j - alpha q_j - beta q_{j-1} (or the kept rows' terms), then h = Q w.
    std::vector<Job> jobs(active);
    std::vector<Job*> all, full;
    for (int64_t a = 0; a < active; ++a) {
      const Start& s = starts_[running[a]];
      const int64_t j = s.steps(), kept = static_cast<int64_t>(s.spikes.size());
      if (!std::isfinite(alphas[a])) continue;
      Job& job = jobs[a];
      job.basis = row(running[a], 0), job.rows = j + 1, job.from = p(a);
      if (j == kept) job.first_local = 0, job.local = s.spikes;
      else job.first_local = j - 1, job.local = {s.beta[j - 1]};
      job.local.push_back(alphas[a]);
      job.w = row(running[a], j + 1);
      job.measures = mode_ == Reorthogonalize::kFull;
      all.push_back(&job);
    }
    if (mode_ == Reorthogonalize::kFull) {
      passes_over_.orthogonalize(all, parallel);
      passes_ += 2;
    } else {
      passes_over_.project(all, parallel);
    }
    for (int64_t a = 0; a < active; ++a) {
      if (jobs[a].basis == nullptr) continue;
      Start& s = starts_[running[a]];
      s.alpha.push_back(alphas[a]);
      s.beta.push_back(jobs[a].norm);
      if (!needs_reorthogonalization(running[a])) continue;
      full.push_back(&jobs[a]);
      jobs[a].from = nullptr, jobs[a].measures = true;
    }
    if (mode_ == Reorthogonalize::kPartial && !full.empty()) {
      passes_over_.orthogonalize(full, parallel);
      passes_ += 2;
    }
    std::vector<Job*> next;
    for (int64_t a = 0; a < active; ++a) {
      Start& s = starts_[running[a]];
      Job& job = jobs[a];
      if (job.basis == nullptr) {
        s.outcome = Outcome::kNotFinite;
        continue;
      }
      const int64_t j = s.steps() - 1;
      if (std::find(full.begin(), full.end(), &job) != full.end()) {
        std::vector<double> total = job.in;
        job.norm = clean(job, total, parallel);
        s.alpha[j] += total[j];
      }
      s.beta[j] = job.norm;
      if (!std::isfinite(job.norm)) {
        s.alpha.pop_back(), s.beta.pop_back();
        s.outcome = Outcome::kNotFinite;
        continue;
      }
      if (j + 1 == n_) {
        s.outcome = Outcome::kExhausted;
        s.beta[j] = 0;
        continue;
      }
      if (job.norm <= (fresh_ ? kNoise<B> : 1) * kEps<B> * norm_of(s)) {  // job.w is rounding
        s.beta[j] = 0;
        if (!fresh_ || j + 1 >= capacity_ || !fresh_row(running[a], j + 1, parallel))
          s.outcome = Outcome::kBreakdown;
        estimates_[running[a]].again = true;
        continue;
      }
      next.push_back(&job);
    }
    passes_over_.normalize(next, parallel);
  }
}

template class Lanczos<float>;
template class Lanczos<double>;

}  // namespace pylandscape
