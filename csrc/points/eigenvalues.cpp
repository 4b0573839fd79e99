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
      lanes_(n * (n + 1) / 2 * kernels_.lanes * int64_t{sizeof(double)} <= kLaneBytes),
      d_(n * kernels_.lanes),
      e_(n * kernels_.lanes),
      scale_(kernels_.lanes),
      work_(4 * (lanes_ ? n * kernels_.lanes : stride_)) {}

void EigenWork::from_lanes(double* h, int64_t count, double* out) {
  const int64_t lanes = kernels_.lanes;
  if (lanes_) {
    kernels_.tridiagonal_lanes(n_, h, d_.data(), e_.data(), scale_.data(), work_.data());
    return solve(count, out);
  }
  const int64_t size = stride_ * stride_;
  if (h_.size() < lanes * size) h_ = Buffer<double>(lanes * size);
  for (int64_t i = 0; i < n_; ++i)
    kernels_.to_points(i + 1, 1.0, h + i * n_ * lanes, h_.data() + i * stride_, size);
  for (int64_t l = 0; l < count; ++l) reduce_one(l, h_.data() + l * size);
  solve(count, out);
}

void EigenWork::from_matrices(const double* matrices, int64_t count, double* out) {
  const int64_t lanes = kernels_.lanes, n = n_;
  if (lanes_) {
    if (h_.size() < n * n * lanes) h_ = Buffer<double>(n * n * lanes);
    for (int64_t l = 0; l < lanes; ++l) {
      const double* from = matrices + std::min(l, count - 1) * n * n;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) h_.data()[(i * n + j) * lanes + l] = from[i * n + j];
    }
    kernels_.tridiagonal_lanes(n, h_.data(), d_.data(), e_.data(), scale_.data(), work_.data());
    return solve(count, out);
  }
  if (h_.size() < stride_ * stride_) h_ = Buffer<double>(stride_ * stride_);
  for (int64_t l = 0; l < count; ++l) {
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(matrices + (l * n + i) * n, i + 1, h_.data() + i * stride_);
    reduce_one(l, h_.data());
  }
  solve(count, out);
}

void EigenWork::reduce_one(int64_t lane, double* matrix) {
  std::fill(matrix + n_ * stride_, matrix + stride_ * stride_, 0.0);  // rows of padding
  kernels_.tridiagonal_one(n_, stride_, matrix, d_.data() + lane, e_.data() + lane,
                           scale_.data() + lane, work_.data());
}

void EigenWork::solve(int64_t count, double* out) {
  const int64_t lanes = kernels_.lanes;
  const unsigned failed = kernels_.tridiagonal_eigenvalues(n_, d_.data(), e_.data());
  for (int64_t l = 0; l < count; ++l) {
    double* to = out + l * n_;
    const double scale = scale_.data()[l];
    if (std::isnan(scale) || (failed >> l & 1U) != 0) {
      std::fill_n(to, n_, std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    for (int64_t i = 0; i < n_; ++i) to[i] = d_.data()[i * lanes + l] / scale;
    std::sort(to, to + n_);
  }
}

bool eigenvalues(int64_t count, int64_t n, const double* matrices, double* out,
                 const Parallel& parallel, const ShouldStop& stop) {
  if (count == 0 || n == 0) return true;
  const int64_t lanes = cpu::point_kernels().lanes;
  std::vector<std::optional<EigenWork>> works(parallel.workers);
  return Items((count + lanes - 1) / lanes, parallel, stop).run([&](int worker, int64_t item) {
    if (!works[worker]) works[worker].emplace(n);
    const int64_t first = item * lanes;
    works[worker]->from_matrices(matrices + first * n * n, std::min(lanes, count - first),
                                 out + first * n);
  });
}

}  // namespace pylandscape
