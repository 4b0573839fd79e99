#include "question/spread.h"

#include <algorithm>
#include <cstring>

namespace pylandscape {
namespace {

// Sums run in eight chains, whose order does not depend on the instruction set or the tile.
constexpr int kChains = 8;
using Chains = double __attribute__((vector_size(kChains * sizeof(double))));

inline Chains load(const double* x) {
  Chains v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

inline double joined(const Chains& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// body(load, i) for whole vectors of columns, then once for the rest, filled up with zeros.
template <typename F>
inline void each_vector(int64_t count, F body) {
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) body([i](const double* x) { return load(x + i); }, i);
  if (i == count) return;
  const int64_t left = count - i;
  body(
      [i, left](const double* x) {
        Chains v{};
        for (int64_t j = 0; j < left; ++j) v[j] = x[i + j];
        return v;
      },
      i);
}

}  // namespace

double sum_columns(const double* x, int64_t count) {
  Chains sum{};
  each_vector(count, [&](auto at, int64_t) { sum += at(x); });
  return joined(sum);
}

Shares share_sums(const double* shares, int64_t count) {
  if (shares == nullptr) return {static_cast<double>(count), static_cast<double>(count)};
  Chains sum{}, squares{};
  each_vector(count, [&](auto at, int64_t) {
    const Chains b = at(shares);
    sum += b;
    squares += b * b;
  });
  return {joined(sum), joined(squares)};
}

Tally tally(const double* losses, const double* shares, int64_t count, double share, double sum) {
  const double ratio = share != 0 ? sum / share : 0;
  Chains squares{}, cross{};
  if (shares == nullptr) {
    int64_t i = 0;
    for (; i + kChains <= count; i += kChains) {
      const Chains rest = load(losses + i) - ratio;
      squares += rest * rest;
    }
    for (int64_t j = 0; i < count; ++i, ++j) squares[j] += (losses[i] - ratio) * (losses[i] - ratio);
    return {sum, joined(squares), 0};  // the deviations from a mean add up to 0
  }
  each_vector(count, [&](auto at, int64_t) {
    const Chains b = at(shares), rest = at(losses) - ratio * b;
    squares += rest * rest;
    cross += rest * b;
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

double subtract_references(const SampleLosses& asked, const double* weights, int64_t first,
                           int64_t count, int64_t samples, const double* losses, double* d) {
  Chains sum{};
  each_vector(count, [&](auto at, int64_t i) {
    Chains v = at(losses);
    for (int64_t r = 0; r < asked.references; ++r)
      v -= weights[r] * at(asked.reference + r * samples + first);
    std::memcpy(d + i, &v, sizeof(double) * std::min<int64_t>(kChains, count - i));
    sum += v;
  });
  return joined(sum);
}

}  // namespace pylandscape
