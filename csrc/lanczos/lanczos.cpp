#include "lanczos/lanczos.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace pylandscape {
namespace {

constexpr int kMostPasses = 6;      // of `remove` on one vector
constexpr double kRounding = 4;     // ||Q w|| <= kRounding eps ||w|| is orthogonal

double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace

// Takes back what a step did to T unless it is kept.
class Lanczos::Undo {
 public:
  Undo(Lanczos& driver, const std::vector<Job>& jobs) : driver_(driver), jobs_(jobs) {
    if (driver.mode_ == Reorthogonalize::kPartial) estimates_ = driver.estimates_;
  }
  Undo(const Undo&) = delete;
  Undo& operator=(const Undo&) = delete;
  ~Undo() {
    if (kept_) return;
    for (const Job& job : jobs_) {
      Start& s = driver_.starts_[job.start];
      s.alpha.resize(job.rows - 1), s.beta.resize(job.rows - 1);
      s.outcome = Outcome::kRunning;
    }
    if (!estimates_.empty()) driver_.estimates_ = std::move(estimates_);
  }
  void keep() { kept_ = true; }

 private:
  Lanczos& driver_;
  const std::vector<Job>& jobs_;
  std::vector<Estimates> estimates_;
  bool kept_ = false;
};

Lanczos::Lanczos(int64_t n, int64_t starts, int64_t capacity, Precision precision,
                 Reorthogonalize mode, bool fresh)
    : n_(n), capacity_(capacity), eps_(precision.eps), noise_(precision.noise), mode_(mode),
      fresh_(fresh), starts_(starts), estimates_(starts) {
  if (n < 1 || starts < 1 || capacity < 2)
    throw std::invalid_argument("Lanczos: expected n >= 1, starts >= 1, capacity >= 2");
}

void Lanczos::begin(BasisRows& rows) {
  std::vector<Job> jobs(count());
  BasisRows::Jobs all;
  for (int64_t s = 0; s < count(); ++s) jobs[s].start = s, all.push_back(&jobs[s]);
  rows.remove(all);
  for (const Job& job : jobs)
    if (!(job.norm > 0) || !std::isfinite(job.norm))
      throw std::invalid_argument("Lanczos: a start is zero or not finite");
  rows.normalize(all);
  for (int64_t s = 0; s < count(); ++s) starts_[s] = {}, estimates_[s] = {{1.0}, {}, false};
}

void Lanczos::load(int64_t start, Start state) {
  estimates_.at(start) = {std::vector<double>(state.alpha.size() + 1, 0.0),
                          std::vector<double>(state.alpha.size(), 0.0), true};
  estimates_[start].last.back() = 1.0;
  starts_.at(start) = std::move(state);
}

// An estimate of ||T||: the largest row sum.
double Lanczos::norm_of(const Start& s) const {
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
bool Lanczos::needs_reorthogonalization(int64_t start) {
  if (mode_ != Reorthogonalize::kPartial) return mode_ == Reorthogonalize::kFull;
  const Start& s = starts_[start];
  Estimates& e = estimates_[start];
  const int64_t j = s.steps() - 1;
  const double noise = eps_ * std::sqrt(double(n_)) * 0.5, beta = s.beta[j];
  if (e.again || !s.spikes.empty()) {
    e.before = std::move(e.last);
    e.last.assign(j + 2, eps_);
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
  if (!(worst > std::sqrt(eps_))) return false;
  e.last.assign(j + 2, eps_);
  e.last.back() = 1.0;
  e.again = true;  // two successive vectors, or the loss comes back at once
  return true;
}

double Lanczos::clean(Job& job, std::vector<double>& total, BasisRows& rows) {
  for (int pass = 0; pass < kMostPasses; ++pass) {
    if (norm(job.out) <= kRounding * eps_ * job.norm) break;
    job.in = job.out;
    for (size_t i = 0; i < total.size(); ++i) total[i] += job.in[i];
    rows.remove({&job});
    ++passes_;
  }
  return job.norm;
}

// Row i becomes a random unit vector orthogonal to the rows before it.
bool Lanczos::fresh_row(int64_t start, int64_t i, BasisRows& rows) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    Job job;
    job.start = start, job.rows = i;
    rows.draw(job, attempt);
    rows.project({&job});
    job.norm = 0;  // at least one removal
    std::vector<double> unused(i);
    if (!(clean(job, unused, rows) > eps_ * std::sqrt(double(n_)))) continue;
    rows.normalize({&job});
    // Scaling up what was left of a long vector scales its rounding too.
    rows.project({&job});
    job.norm = 1;
    clean(job, unused, rows);
    rows.normalize({&job});
    return true;
  }
  return false;
}

bool Lanczos::run(int64_t steps, BasisRows& rows) {
  const int64_t most = std::min(steps, most_steps());
  for (;;) {
    std::vector<Job> jobs;
    for (int64_t i = 0; i < count(); ++i) {
      const Start& s = starts_[i];
      if (s.outcome != Outcome::kRunning || s.steps() >= most) continue;
      Job job;
      job.start = i, job.rows = s.steps() + 1;
      if (s.steps() == static_cast<int64_t>(s.spikes.size())) job.local = s.spikes;
      else job.local = {s.beta.back()};
      jobs.push_back(std::move(job));
    }
    if (jobs.empty()) return true;
    BasisRows::Jobs all;
    for (Job& job : jobs) all.push_back(&job);
    if (!rows.multiply(all)) return false;
    Undo undo(*this, jobs);
    step(jobs, rows);
    undo.keep();
  }
}

// Row j of T, from p = A q_j, which `rows` holds. Symbols: Q (j + 1, n) the rows so far, eps ||T||
// what counts as rounding, s_i the spikes of the kept rows.
void Lanczos::step(std::vector<Job>& jobs, BasisRows& rows) {
  // alpha_j = q_j . p
  // w = p - alpha_j q_j - beta_{j-1} q_{j-1}    (after a restart, once: - sum_i s_i q_i)
  // full: h = Q w, w <- w - Q^T h
  // beta_j = ||w||
  BasisRows::Jobs all, full, next;
  for (Job& job : jobs) all.push_back(&job);
  rows.advance(all, mode_ == Reorthogonalize::kFull);
  if (mode_ == Reorthogonalize::kFull) passes_ += 2;
  for (Job& job : jobs) {
    if (!std::isfinite(job.alpha)) continue;
    Start& s = starts_[job.start];
    s.alpha.push_back(job.alpha);
    s.beta.push_back(job.norm);
    if (needs_reorthogonalization(job.start)) full.push_back(&job);
  }
  // partial, where |q_{j+1} . q_i| may be above sqrt(eps): h = Q w, w <- w - Q^T h
  if (mode_ == Reorthogonalize::kPartial && !full.empty()) {
    rows.orthogonalize(full);
    passes_ += 2;
  }
  for (Job& job : jobs) {
    Start& s = starts_[job.start];
    if (!std::isfinite(job.alpha)) {
      s.outcome = Outcome::kNotFinite;
      continue;
    }
    const int64_t j = s.steps() - 1;
    if (std::find(full.begin(), full.end(), &job) != full.end()) {
      // while ||Q w|| > rounding ||w||: h <- h + Q w, w <- w - Q^T Q w
      // alpha_j <- alpha_j + h_j
      std::vector<double> total = job.in;
      clean(job, total, rows);
      s.alpha[j] += total[j];
    }
    // beta_j = ||w||
    s.beta[j] = job.norm;
    if (!std::isfinite(job.norm)) {
      s.alpha.pop_back(), s.beta.pop_back();
      s.outcome = Outcome::kNotFinite;
      continue;
    }
    // j + 1 = n: Q is square, w = 0
    if (j + 1 == n_) {
      s.outcome = Outcome::kExhausted;
      s.beta[j] = 0;
      continue;
    }
    // ||w|| <= eps ||T||: w is rounding, and span Q is invariant. beta_j = 0, and q_{j+1} is a random
    // vector orthogonal to Q, or nothing.
    if (job.norm <= (fresh_ ? noise_ : 1) * eps_ * norm_of(s)) {
      s.beta[j] = 0;
      if (!fresh_ || j + 1 >= capacity_ || !fresh_row(job.start, j + 1, rows))
        s.outcome = Outcome::kBreakdown;
      estimates_[job.start].again = true;
      continue;
    }
    next.push_back(&job);
  }
  // q_{j+1} = w / beta_j
  if (!next.empty()) rows.normalize(next);
}

}  // namespace pylandscape
