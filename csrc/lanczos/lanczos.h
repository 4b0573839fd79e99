// The Lanczos process for symmetric A (n, n), for several starts at once:
//
//   A Q^T = Q^T T + r e_m^T,   Q Q^T = I,   r = beta_m q_{m+1}
//
// with the rows of Q (m, n) the Lanczos vectors and T (m, m) tridiagonal: alpha on, beta beside the
// diagonal. After a thick restart (Wu and Simon 2000) the first `kept` rows are Ritz vectors: T
// starts with their values on the diagonal and couples each of them to row `kept` by `spikes`.
//
// This is the recurrence alone: vectors and products are behind `BasisRows`, on the host or on a device.
// All sums and T are double. The products of all running starts are asked for as one block.
#pragma once
#include <limits>

#include "lanczos/rows.h"

namespace pylandscape {

enum class Reorthogonalize : int {
  kFull,     // every vector against all before it, until nothing but rounding is left
  kPartial,  // where the recurrence of Simon (1984) estimates a loss beyond sqrt(eps)
  kNone,     // the three-term recurrence alone
};

enum class Outcome : int {
  kRunning,
  kBreakdown,  // beta is rounding (eps ||T||): the Krylov space is invariant, T is exact on it
  kExhausted,  // the rows span everything (m = n)
  kNotFinite,  // a product with a NaN or an infinity: that step is not in T
};

// Of the rows' dtype.
struct Precision {
  double eps;
  // Where a breakdown is followed by a fresh vector, beta of so many eps ||T|| is the rounding of the
  // products: going on with it would show no eigenspace a second time. In float32 that much may
  // couple to eigenvalues that are wanted.
  double noise;
};
template <typename B>
constexpr Precision precision_of() {
  return {std::numeric_limits<B>::epsilon(), sizeof(B) == sizeof(double) ? 100.0 : 4.0};
}

class Lanczos {
 public:
  struct Start {  // one start's state; row i of T: alpha[i], beta[i] couples it to row i + 1
    std::vector<double> alpha, beta;
    std::vector<double> spikes;  // (kept,) coupling of the kept rows to row `kept`
    Outcome outcome = Outcome::kRunning;
    int64_t steps() const { return static_cast<int64_t>(alpha.size()); }
  };

  // `capacity` rows of each start bound the steps to capacity - 1, or to n where capacity >= n.
  // fresh: after a breakdown go on with a random vector orthogonal to all rows, with beta = 0.
  Lanczos(int64_t n, int64_t starts, int64_t capacity, Precision precision, Reorthogonalize mode,
          bool fresh);

  // Row 0 of each start holds it, and is normalised here (a zero or non-finite one:
  // std::invalid_argument); before the first run of a new process.
  void begin(BasisRows& rows);
  // A state saved from an earlier process over the same rows, or made by a thick restart: row
  // alpha.size() holds the next vector.
  void load(int64_t start, Start state);

  // Up to `steps` rows of T for every start. False: stopped; what is done stays. What `rows` throws
  // comes through, and the step is as if it had not begun.
  bool run(int64_t steps, BasisRows& rows);

  const Start& start(int64_t i) const { return starts_[i]; }
  int64_t count() const { return static_cast<int64_t>(starts_.size()); }
  int64_t most_steps() const { return capacity_ - 1 < n_ ? capacity_ - 1 : n_; }
  int64_t passes() const { return passes_; }  // streams of the basis so far, over all steps

 private:
  using Job = BasisRows::Job;
  class Undo;

  void step(std::vector<Job>& jobs, BasisRows& rows);
  double norm_of(const Start& s) const;
  bool needs_reorthogonalization(int64_t start);
  // Orthogonalises the job's w to rounding; its coefficients are added to `total`.
  double clean(Job& job, std::vector<double>& total, BasisRows& rows);
  bool fresh_row(int64_t start, int64_t i, BasisRows& rows);

  const int64_t n_, capacity_;
  const double eps_, noise_;
  const Reorthogonalize mode_;
  const bool fresh_;
  std::vector<Start> starts_;
  int64_t passes_ = 0;
  // partial: estimates of q_j . q_i for the last two rows j, and whether the next step must follow
  struct Estimates {
    std::vector<double> last, before;
    bool again = false;
  };
  std::vector<Estimates> estimates_;
};

}  // namespace pylandscape
