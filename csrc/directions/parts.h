// Random directions that are not stored: any part of one, drawn again where it is needed.
#pragma once
#include <vector>

#include "directions/segments.h"
#include "program/parallel.h"

namespace pylandscape {

// How many sums `measure_part` gives for these segments: one for each begun chunk of each.
int64_t count_sums(const int64_t* segments, int64_t count);

// sums (count_sums, 2) = |d|^2, |theta|^2 of the standard normals d of (seed, stream), chunk by
// chunk of each segment in order: what make_direction adds up for its factors. Segments are in
// elements of the whole vector; theta holds those from `first` on, at least as far as they reach.
template <typename T>
void measure_part(const T* theta, int64_t first, const int64_t* segments, int64_t count,
                  uint64_t seed, uint64_t stream, double* sums, const Parallel& parallel);

// A direction by its name: its segments (count, 2), as check_segments wants them, and a factor for
// each; null: none.
template <typename T>
struct Named {
  const int64_t* segments;
  const T* factors;
  int64_t count;
  bool times_theta;  // each element times theta's
  uint64_t seed, stream;
};

// out (n,) = elements first .. first + n - 1 of the direction; theta (n,) the same elements of
// theta, read where times_theta. The bits are those of make_direction.
template <typename T>
void write_part(const Named<T>& of, int64_t first, int64_t n, const T* theta, T* out,
                const Parallel& parallel);

// out (n,) = base + c[0] d_0 + c[1] d_1 + ... with these elements of the directions `of`, in their
// order and in one pass over base and out, which may be the same. The bits are those of the perturb
// kernel on stored directions.
template <typename T>
void write_sum(const std::vector<Named<T>>& of, const T* c, int64_t first, int64_t n,
               const T* theta, const T* base, T* out, const Parallel& parallel);

}  // namespace pylandscape
