#include "question/spread.h"

namespace pylandscape {
namespace {

constexpr int kChains = 8;  // the order of a sum does not depend on the instruction set or the tile

double joined(const double* acc) {
  return ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]));
}

// term(i, j) adds what column i gives to chain j.
template <typename F>
void in_chains(int64_t count, F term) {
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains)
    for (int j = 0; j < kChains; ++j) term(i + j, j);
  for (; i < count; ++i) term(i, static_cast<int>(i % kChains));
}

}  // namespace

double sum_columns(const double* x, int64_t count) {
  double acc[kChains] = {};
  in_chains(count, [&](int64_t i, int j) { acc[j] += x[i]; });
  return joined(acc);
}

Shares share_sums(const double* shares, int64_t count) {
  double sum[kChains] = {}, squares[kChains] = {};
  in_chains(count, [&](int64_t i, int j) {
    sum[j] += shares[i];
    squares[j] += shares[i] * shares[i];
  });
  return {joined(sum), joined(squares)};
}

Tally tally(const double* losses, const double* shares, int64_t count, double share) {
  const double sum = sum_columns(losses, count), ratio = share != 0 ? sum / share : 0;
  double squares[kChains] = {}, cross[kChains] = {};
  in_chains(count, [&](int64_t i, int j) {
    const double rest = losses[i] - ratio * shares[i];
    squares[j] += rest * rest;
    cross[j] += rest * shares[i];
  });
  return {sum, joined(squares), joined(cross)};
}

double spread(const Tally* tallies, int64_t stride, const std::vector<Shares>& shares) {
  double losses = 0, total = 0, result = 0;
  for (std::size_t t = 0; t < shares.size(); ++t) {
    losses += tallies[static_cast<int64_t>(t) * stride].sum;
    total += shares[t].sum;
  }
  const double mean = losses / total;
  for (std::size_t t = 0; t < shares.size(); ++t) {
    const Tally& own = tallies[static_cast<int64_t>(t) * stride];
    const double step = mean - (shares[t].sum != 0 ? own.sum / shares[t].sum : 0);
    result += own.squares - 2 * step * own.cross + step * step * shares[t].squares;
  }
  return result;
}

void subtract_references(const SampleLosses& asked, const double* weights, int64_t first,
                         int64_t count, int64_t samples, const double* losses, double* d) {
  for (int64_t i = 0; i < count; ++i) d[i] = losses[i];
  for (int64_t r = 0; r < asked.references; ++r) {
    const double* other = asked.reference + r * samples + first;
    for (int64_t i = 0; i < count; ++i) d[i] -= weights[r] * other[i];
  }
}

}  // namespace pylandscape
