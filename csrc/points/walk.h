// Progressive gradient walks whose steps the core takes: pylandscape/clouds/walk_steps.py has the rule.
#pragma once
#include <cstdint>

namespace pylandscape {

struct WalkRule {
  double longest;  // step of a component
  double bound;    // a component that would leave [-bound, bound] turns; infinity: nothing does
  int tie;         // of a derivative that is zero: 0 upward, 1 either way, 2 stays
  uint64_t seed;
};

struct WalkArrays {  // of W walks of T points
  int64_t walks, steps;
  const uint64_t* numbers;  // (W,): each walk's stream of random numbers
  double* points;           // (W, T, n)
  double *losses, *norms;   // (W, T)
  double* gradients;        // (W, n) at the last point that was evaluated
};

}  // namespace pylandscape
