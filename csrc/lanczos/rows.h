// What the Lanczos recurrence asks of its vectors, wherever they are kept: rows of one basis for each
// start. Vectors are named by (start, row); only numbers of their size cross.
//
// A job's w is row `rows` of its start, its Q (rows, n) the rows before. Jobs of one call are of
// different starts, and independent of each other.
#pragma once
#include <cstdint>
#include <vector>

namespace pylandscape {

// The stream of the Gaussian draw (common/gaussian.h) that fills row `row` of a start after a
// breakdown; pylandscape/theta/random_source.py lists all streams.
constexpr uint64_t fresh_stream(int64_t start, int64_t row, int attempt) {
  return uint64_t{0x13} << 56 | uint64_t(start) << 40 | uint64_t(row) << 8 | uint64_t(attempt);
}

class BasisRows {
 public:
  struct Job {
    int64_t start = 0, rows = 0;
    std::vector<double> local;    // advance: coefficients of the rows before the last one of Q
    double alpha = 0;             // advance: found
    std::vector<double> in, out;  // (rows,): h that was or is to be removed; Q w afterwards
    double norm = 0;              // ||w|| afterwards
  };
  using Jobs = std::vector<Job*>;

  virtual ~BasisRows() = default;
  // p = A q, q the last row of Q, as one block; kept until `advance` of the same jobs. False: stop.
  virtual bool multiply(const Jobs& jobs) = 0;
  // alpha = q . p and w = p - alpha q - (local terms), which is all if it is not finite; then, where
  // it removes, as `orthogonalize`.
  virtual void advance(const Jobs& jobs, bool removes) = 0;
  // out = Q w.
  virtual void project(const Jobs& jobs) = 0;
  // in = Q w, then as `remove`.
  virtual void orthogonalize(const Jobs& jobs) = 0;
  // w <- w - Q^T in, out = Q w, norm.
  virtual void remove(const Jobs& jobs) = 0;
  // w <- w / norm.
  virtual void normalize(const Jobs& jobs) = 0;
  // w = standard normal numbers of `fresh_stream`, others at each attempt (0, 1, ...).
  virtual void draw(const Job& job, int attempt) = 0;
};

}  // namespace pylandscape
