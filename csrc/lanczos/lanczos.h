// The Lanczos process for symmetric A (n, n), for several starts at once:
//
//   A Q^T = Q^T T + r e_m^T,   Q Q^T = I,   r = beta_m q_{m+1}
//
// with the rows of Q (m, n) the Lanczos vectors and T (m, m) tridiagonal: alpha on, beta beside the
// diagonal. After a thick restart (Wu and Simon 2000) the first `kept` rows are Ritz vectors: T
// starts with their values on the diagonal and couples each of them to row `kept` by `spikes`.
//
// Vectors are B (float or double), all sums and T are double. The products of all running starts
// are asked for as one block.
#pragma once
#include <random>

#include "lanczos/basis.h"

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

template <typename B>
class Lanczos {
 public:
  // products (count, n) of vectors (count, n); false: stop.
  using Product = std::function<bool(int64_t count, const B* vectors, double* products)>;

  struct Start {  // one start's state; row i of T: alpha[i], beta[i] couples it to row i + 1
    std::vector<double> alpha, beta;
    std::vector<double> spikes;  // (kept,) coupling of the kept rows to row `kept`
    Outcome outcome = Outcome::kRunning;
    int64_t steps() const { return static_cast<int64_t>(alpha.size()); }
  };

  // basis (starts, capacity, n), the caller's memory: row 0 of each holds its start, normalised
  // here (a zero or non-finite one: std::invalid_argument), unless the state is loaded. `capacity`
  // rows bound the steps to capacity - 1, or to n where capacity >= n. fresh: after a breakdown go
  // on with a random vector orthogonal to all rows (seed), with beta = 0.
  Lanczos(int64_t n, int64_t starts, int64_t capacity, B* basis, Reorthogonalize mode, bool fresh,
          uint64_t seed);

  // Normalises the starts; before the first run of a new process.
  void begin(const Parallel& parallel);
  // A state saved from an earlier process over the same basis, or made by a thick restart: row
  // alpha.size() of the basis holds the next vector.
  void load(int64_t start, Start state);

  // Up to `steps` rows of T for every start. False: stopped; what is done stays.
  bool run(int64_t steps, const Product& product, const Parallel& parallel);

  const Start& start(int64_t i) const { return starts_[i]; }
  int64_t count() const { return static_cast<int64_t>(starts_.size()); }
  int64_t most_steps() const { return std::min(capacity_ - 1, n_); }
  int64_t passes() const { return passes_; }  // streams of the basis so far, over all steps

 private:
  B* row(int64_t start, int64_t i) const { return basis_ + (start * capacity_ + i) * n_; }
  double norm_of(const Start& s) const;
  bool needs_reorthogonalization(int64_t start);
  // Orthogonalises the job's w to rounding; its coefficients are added to `total`.
  double clean(typename BasisPasses<B>::Job& job, std::vector<double>& total,
               const Parallel& parallel);
  bool fresh_row(int64_t start, int64_t i, const Parallel& parallel);

  const int64_t n_, capacity_;
  B* const basis_;
  const Reorthogonalize mode_;
  const bool fresh_;
  std::mt19937_64 random_;
  BasisPasses<B> passes_over_;
  std::vector<Start> starts_;
  int64_t passes_ = 0;
  Buffer<B> inputs_;
  Buffer<double> products_;
  // partial: estimates of q_j . q_i for the last two rows j, and whether the next step must follow
  struct Estimates {
    std::vector<double> last, before;
    bool again = false;
  };
  std::vector<Estimates> estimates_;
};

}  // namespace pylandscape
