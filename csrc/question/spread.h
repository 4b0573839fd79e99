// How the samples' own losses spread about L: what the error of L as a mean over samples is made of.
//
// l_i: a sample's sum of loss terms, b_i: its part of the denominator, L = sum l / sum b (whatever the
// unit of b, L b_i is the same). The sums of
// (l_i - L b_i)^2 are taken tile by tile about the tile's own ratio, then moved to L: no digits are
// lost where the l_i are nearly equal, and their order does not depend on threads or chunks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pylandscape {

// What a run is asked for besides its sums. Differences are those to other losses of the samples,
// weighted: d_i = l_i - sum_r weights_r reference_ri.
struct SampleLosses {
  const double* shares;       // (samples,) b; null: all are 1 / samples of the denominator
  int64_t references;         // how many; 0: no differences
  const double* reference;    // (references, samples)
  const double* weights;      // (g, references)
  double* squares;            // (g,) sum (l - L b)^2
  double* differences;        // (g,) sum (d - D b)^2, D = sum d / sum b; null without references
  double* own;                // (g, samples) l; may be null
};

// Of one tile, about its own ratio r = sum l / sum b: sum l, sum (l - r b)^2, sum (l - r b) b.
struct Tally {
  double sum, squares, cross;
};

// Of the denominators of a tile, in whatever unit.
struct Shares {
  double sum, squares;
};

double sum_columns(const double* x, int64_t count);  // in eight fixed chains
// Denominators may be null: each is 1.
Shares share_sums(const double* shares, int64_t count);
// Of losses whose sum is `sum`, and denominators whose sum is `share`.
Tally tally(const double* losses, const double* shares, int64_t count, double share, double sum);

// Sum (l - L b)^2 over all tiles; tile t's tally is tallies[t * stride].
double spread(const Tally* tallies, int64_t stride, const std::vector<Shares>& shares);

// d (count,) = losses - the weighted references, each of which has `samples` numbers; its sum.
double subtract_references(const SampleLosses& asked, const double* weights, int64_t first,
                             int64_t count, int64_t samples, const double* losses, double* d);

}  // namespace pylandscape
