#include "lanczos/basis.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/directions.h"
#include "program/buffer.h"

namespace pylandscape {
namespace {

constexpr int64_t kChunkBytes = 384 * 1024;  // of the basis: less than half of the L2 cache
constexpr int64_t kGroupColumns = 16384;     // columns that are worth a work item of their own
constexpr int kMostPasses = 6;               // of `remove` on one row
constexpr double kRounding = 4;              // ||Q w|| <= kRounding eps ||w|| is orthogonal
constexpr double kShort = 1e-3;              // of what is left of a row: its rounding shows
constexpr uint64_t kComplement = uint64_t{0x15} << 56;  // stream of the draw; theta/random_source.py
constexpr int64_t kInnerRows = 64;           // rows of `inner` that are one

}  // namespace

template <typename B>
BasisPasses<B>::BasisPasses(int64_t n)
    : kernels_(cpu::kernels<B>()),
      n_(n),
      groups_(std::clamp<int64_t>(n / kGroupColumns, 1, kGroups)) {}

template <typename B>
int64_t BasisPasses<B>::chunk(int64_t rows) const {
  const int64_t fit = kChunkBytes / (static_cast<int64_t>(sizeof(B)) * std::max<int64_t>(1, rows));
  return std::clamp<int64_t>(fit / 64 * 64, 256, 8192);
}

template <typename B>
double BasisPasses<B>::pass(const Job& job, bool removes, int64_t group,
                            std::vector<double>& sums) const {
  const int64_t step = chunk(job.rows);
  sums.assign(job.rows, 0.0);
  double norm = 0;
  for (int64_t c = begin(group); c < end(group); c += step) {
    const int64_t cols = std::min(step, end(group) - c);
    const B* q = job.basis + c;
    if (removes) {
      kernels_.basis_subtract(job.rows, cols, q, n_, job.in.data(), job.w + c, &norm);
    } else if (job.from != nullptr) {
      kernels_.basis_subtract_from(job.rows - job.first_local, cols, q + job.first_local * n_, n_,
                                   job.local.data(), job.from + c, job.w + c, &norm);
    }
    if (job.measures) kernels_.basis_dots(job.rows, cols, q, n_, job.w + c, sums.data());
  }
  return norm;
}

template <typename B>
void BasisPasses<B>::run(std::vector<Job*>& jobs, bool removes, const Parallel& parallel) {
  const int64_t count = static_cast<int64_t>(jobs.size()) * groups_;
  std::vector<std::vector<double>> sums(count);
  std::vector<double> norms(count);
  Items(count, parallel, {}).run([&](int, int64_t item) {
    norms[item] = pass(*jobs[item / groups_], removes, item % groups_, sums[item]);
  });
  for (size_t j = 0; j < jobs.size(); ++j) {
    Job& job = *jobs[j];
    job.out.assign(job.rows, 0.0);
    double norm = 0;
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t item = static_cast<int64_t>(j) * groups_ + g;
      for (int64_t r = 0; r < job.rows; ++r) job.out[r] += sums[item][r];
      norm += norms[item];
    }
    job.norm = std::sqrt(norm);
  }
}

template <typename B>
void BasisPasses<B>::orthogonalize(std::vector<Job*>& jobs, const Parallel& parallel) {
  if (groups_ > 1) {
    run(jobs, false, parallel);
    for (Job* job : jobs) job->in = job->out;
    return run(jobs, true, parallel);
  }
  Items(static_cast<int64_t>(jobs.size()), parallel, {}).run([&](int, int64_t i) {
    Job& job = *jobs[i];
    pass(job, false, 0, job.in);
    job.norm = std::sqrt(pass(job, true, 0, job.out));
  });
}

template <typename B>
void BasisPasses<B>::project(std::vector<Job*>& jobs, const Parallel& parallel) {
  run(jobs, false, parallel);
}
template <typename B>
void BasisPasses<B>::remove(std::vector<Job*>& jobs, const Parallel& parallel) {
  run(jobs, true, parallel);
}

template <typename B>
void BasisPasses<B>::normalize(std::vector<Job*>& jobs, const Parallel& parallel) {
  Items(static_cast<int64_t>(jobs.size()) * groups_, parallel, {}).run([&](int, int64_t item) {
    const Job& job = *jobs[item / groups_];
    const int64_t from = begin(item % groups_), to = end(item % groups_);
    kernels_.scale(to - from, 1.0 / job.norm, job.w + from);
  });
}

template <typename B>
std::vector<double> BasisPasses<B>::dots(
    const std::vector<std::pair<const B*, const double*>>& pairs, const Parallel& parallel) {
  const int64_t count = static_cast<int64_t>(pairs.size()) * groups_;
  std::vector<double> parts(count), found(pairs.size());
  Items(count, parallel, {}).run([&](int, int64_t item) {
    const auto& [q, p] = pairs[item / groups_];
    const int64_t from = begin(item % groups_), to = end(item % groups_);
    parts[item] = kernels_.dot_double(to - from, q + from, p + from);
  });
  for (int64_t i = 0; i < count; ++i) found[i / groups_] += parts[i];
  return found;
}

template <typename B>
void BasisPasses<B>::combine(int64_t rows, const B* q, int64_t count, const double* c, B* out,
                             const Parallel& parallel) const {
  const int64_t step = chunk(rows + count);
  std::vector<double> minus(count * rows);
  for (int64_t i = 0; i < count * rows; ++i) minus[i] = -c[i];
  const std::vector<double> zeros(step);
  Items((n_ + step - 1) / step, parallel, {}).run([&](int, int64_t item) {
    const int64_t at = item * step, cols = std::min(step, n_ - at);
    Buffer<B> found(count * cols);
    double unused = 0;
    for (int64_t j = 0; j < count; ++j)
      kernels_.basis_subtract_from(rows, cols, q + at, n_, minus.data() + j * rows, zeros.data(),
                                   found.data() + j * cols, &unused);
    for (int64_t j = 0; j < count; ++j)
      std::copy_n(found.data() + j * cols, cols, out + j * n_ + at);
  });
}

template <typename B>
void BasisPasses<B>::inner(int64_t k, const B* x, int64_t l, const B* y, double* out,
                           const Parallel& parallel) const {
  const int64_t blocks = (k + kInnerRows - 1) / kInnerRows, step = chunk(std::min(k, kInnerRows));
  std::vector<std::vector<double>> parts(groups_ * blocks);  // (l, rows of the block) each
  Items(groups_ * blocks, parallel, {}).run([&](int, int64_t item) {
    const int64_t group = item % groups_, first = item / groups_ * kInnerRows;
    const int64_t rows = std::min(kInnerRows, k - first);
    std::vector<double>& sums = parts[item];
    sums.assign(l * rows, 0.0);
    for (int64_t c = begin(group); c < end(group); c += step)
      for (int64_t j = 0; j < l; ++j)
        kernels_.basis_dots(rows, std::min(step, end(group) - c), x + first * n_ + c, n_,
                            y + j * n_ + c, sums.data() + j * rows);
  });
  std::fill_n(out, k * l, 0.0);
  for (int64_t item = 0; item < groups_ * blocks; ++item) {
    const int64_t first = item / groups_ * kInnerRows, rows = std::min(kInnerRows, k - first);
    for (int64_t j = 0; j < l; ++j)
      for (int64_t i = 0; i < rows; ++i) out[(first + i) * l + j] += parts[item][j * rows + i];
  }
}

template <typename B>
void BasisPasses<B>::clean(Job& job, std::vector<double>& coefficients, const Parallel& parallel) {
  std::vector<Job*> jobs{&job};
  const auto length = [](const std::vector<double>& v) {
    double sum = 0;
    for (const double x : v) sum += x * x;
    return std::sqrt(sum);
  };
  run(jobs, false, parallel);
  for (int pass = 0; pass < kMostPasses; ++pass) {
    job.in = job.out;
    for (int64_t i = 0; i < job.rows; ++i) coefficients[i] += job.in[i];
    run(jobs, true, parallel);
    if (length(job.out) <= kRounding * std::numeric_limits<B>::epsilon() * job.norm) break;
  }
}

template <typename B>
void BasisPasses<B>::orthonormal(int64_t k, B* a, double* r, const Parallel& parallel) {
  std::fill_n(r, k * k, 0.0);
  for (int64_t j = 0; j < k; ++j) {
    Job job;
    job.basis = a, job.rows = j, job.w = a + j * n_;
    std::vector<double> h(j), unused(j);
    clean(job, h, parallel);
    double removed = 0;
    for (int64_t i = 0; i < j; ++i) r[i * k + j] = h[i], removed += h[i] * h[i];
    r[j * k + j] = job.norm;
    bool again = job.norm <= kShort * std::sqrt(removed + job.norm * job.norm);
    if (!(job.norm > 0)) {
      std::vector<float> drawn(n_);
      cpu::direction_kernels<float>().draw(0, kComplement | uint64_t(j), 0, n_, drawn.data(),
                                           nullptr);
      std::copy(drawn.begin(), drawn.end(), job.w);
      clean(job, unused, parallel);
      again = true;
    }
    std::vector<Job*> jobs{&job};
    normalize(jobs, parallel);
    // Scaling up what was left of a long row scaled its rounding too.
    if (again) {
      clean(job, unused, parallel);
      normalize(jobs, parallel);
    }
  }
}

template class BasisPasses<float>;
template class BasisPasses<double>;

}  // namespace pylandscape
