#include "points/eigenvalues.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kLaneBytes = 400 << 10;  // of a triangle of vectors: beyond it, one by one

}  // namespace

EigenWork::EigenWork(int64_t n)
    : kernels_(cpu::point_kernels()),
      n_(n),
      stride_(round_up(std::max<int64_t>(n, 1), kernels_.lanes)),
      by_lanes_(n * (n + 1) / 2 * kernels_.lanes * int64_t{sizeof(double)} <= kLaneBytes),
      d_(2 * n * kernels_.lanes),
      e_(2 * n * kernels_.lanes),
      scale_(2 * kernels_.lanes),
      work_(4 * (by_lanes_ ? n * kernels_.lanes : stride_)) {}

void EigenWork::take_lanes(double* h, int64_t count, double factor, const bool* finite,
                           double* out) {
  const int64_t lanes = kernels_.lanes, size = stride_ * stride_;
  if (by_lanes_) {
    reduce_lanes(h);
  } else {
    if (h_.size() < lanes * size) h_ = Buffer<double>(lanes * size);
    for (int64_t i = 0; i < n_; ++i)
      kernels_.to_points(i + 1, 1.0, h + i * n_ * lanes, h_.data() + i * stride_, size);
    for (int64_t l = 0; l < count; ++l) reduce_one(l, h_.data() + l * size);
  }
  wait(count, factor, finite, out);
}

void EigenWork::take_matrices(const double* matrices, int64_t count, double* out) {
  const int64_t lanes = kernels_.lanes, n = n_;
  if (by_lanes_) {
    if (h_.size() < n * n * lanes) h_ = Buffer<double>(n * n * lanes);
    for (int64_t l = 0; l < lanes; ++l) {
      const double* from = matrices + std::min(l, count - 1) * n * n;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) h_.data()[(i * n + j) * lanes + l] = from[i * n + j];
    }
    reduce_lanes(h_.data());
  } else {
    if (h_.size() < stride_ * stride_) h_ = Buffer<double>(stride_ * stride_);
    for (int64_t l = 0; l < count; ++l) {
      for (int64_t i = 0; i < n; ++i)
        std::copy_n(matrices + (l * n + i) * n, i + 1, h_.data() + i * stride_);
      reduce_one(l, h_.data());
    }
  }
  wait(count, 1.0, nullptr, out);
}

void EigenWork::reduce_lanes(double* h) {
  const int64_t size = n_ * kernels_.lanes;
  kernels_.tridiagonal_lanes(n_, h, part(d_, size), part(e_, size), part(scale_, kernels_.lanes),
                             work_.data());
}

void EigenWork::reduce_one(int64_t lane, double* matrix) {
  const int64_t size = n_ * kernels_.lanes;
  std::fill(matrix + n_ * stride_, matrix + stride_ * stride_, 0.0);  // rows of padding
  kernels_.tridiagonal_one(n_, stride_, matrix, part(d_, size) + lane, part(e_, size) + lane,
                           part(scale_, kernels_.lanes) + lane, work_.data());
}

void EigenWork::wait(int64_t count, double factor, const bool* finite, double* out) {
  Waiting& last = waits_[waiting_++];
  last.count = count, last.factor = factor, last.out = out;
  for (int64_t l = 0; l < count; ++l) last.finite[l] = finite == nullptr || finite[l];
  if (waiting_ == 2) finish();
}

void EigenWork::finish() {
  if (waiting_ == 0) return;
  const int64_t size = n_ * kernels_.lanes;
  if (waiting_ == 1)  // one vector of matrices has the bits that it has beside another
    std::fill_n(part(d_, size), size, 0.0), std::fill_n(part(e_, size), size, 0.0);
  const unsigned failed = kernels_.tridiagonal_eigenvalues(n_, d_.data(), e_.data());
  for (int64_t i = 0; i < waiting_; ++i) write(waits_[i], i, failed >> i * kernels_.lanes);
  waiting_ = 0;
}

void EigenWork::write(const Waiting& of, int64_t place, unsigned failed) {
  const int64_t lanes = kernels_.lanes;
  const double* d = d_.data() + place * n_ * lanes;
  for (int64_t l = 0; l < of.count; ++l) {
    double* to = of.out + l * n_;
    const double scale = scale_.data()[place * lanes + l];
    if (std::isnan(scale) || (failed >> l & 1U) != 0 || !of.finite[l]) {
      std::fill_n(to, n_, std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    const double back = 1.0 / scale;  // a power of two
    for (int64_t i = 0; i < n_; ++i) to[i] = d[i * lanes + l] * back * of.factor;
  }
}

bool eigenvalues(int64_t count, int64_t n, const double* matrices, double* out,
                 const Parallel& parallel, const ShouldStop& stop) {
  if (count == 0 || n == 0) return true;
  const int64_t each = 2 * cpu::point_kernels().lanes;
  std::vector<std::optional<EigenWork>> works(parallel.workers);
  return Items((count + each - 1) / each, parallel, stop).run([&](int worker, int64_t item) {
    if (!works[worker]) works[worker].emplace(n);
    const int64_t end = std::min(count, (item + 1) * each);
    for (int64_t first = item * each; first < end; first += each / 2)
      works[worker]->take_matrices(matrices + first * n * n, std::min(each / 2, end - first),
                                   out + first * n);
    works[worker]->finish();
  });
}

}  // namespace pylandscape
