// Rows in the caller's memory: basis (starts, capacity, n) of B, float or double.
#pragma once
#include <functional>

#include "lanczos/basis.h"
#include "lanczos/rows.h"
#include "program/buffer.h"

namespace pylandscape {

template <typename B>
class HostRows final : public BasisRows {
 public:
  // products (count, n) of vectors (count, n); false: stop.
  using Product = std::function<bool(int64_t count, const B* vectors, double* products)>;

  // seed: of what is drawn, by counter (common/gaussian.h): a function of the seed and the row alone.
  HostRows(int64_t n, int64_t starts, int64_t capacity, B* basis, uint64_t seed);

  Parallel parallel;  // both are set before the driver runs
  Product product;

  bool multiply(const Jobs& jobs) override;
  void advance(const Jobs& jobs, bool removes) override;
  void project(const Jobs& jobs) override;
  void orthogonalize(const Jobs& jobs) override;
  void remove(const Jobs& jobs) override;
  void normalize(const Jobs& jobs) override;
  void draw(const Job& job, int attempt) override;

 private:
  using Pass = typename BasisPasses<B>::Job;
  using Passes = void (BasisPasses<B>::*)(std::vector<Pass*>&, const Parallel&);

  B* row(int64_t start, int64_t i) const { return basis_ + (start * capacity_ + i) * n_; }
  Pass pass_of(const Job& job) const;
  void run(const Jobs& jobs, std::vector<Pass>& passes, Passes how);

  const int64_t n_, starts_, capacity_;
  B* const basis_;
  BasisPasses<B> passes_;
  const uint64_t seed_;
  Buffer<B> inputs_;
  Buffer<double> products_;
};

}  // namespace pylandscape
