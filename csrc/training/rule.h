// The optimisers' rules: torch.optim's, and what may stand around them.
#pragma once
#include <cmath>
#include <cstdint>

#include "cpu/kernels.h"

namespace pylandscape {

// theta moves by one step of `optimiser` with g, the gradient of the mini-batch's loss. In two
// stages (second-order Runge-Kutta), g = a1 g(theta) + a2 g(theta - q1 rate g(theta)). Then, where
// clip >= 0, g is scaled to that norm at most, as torch.nn.utils.clip_grad_norm_ does.
struct Rule {
  cpu::Optimiser optimiser{};  // but for what changes from step to step
  bool two_stages = false;
  double a1 = 1, a2 = 0, q1 = 0;
  double clip = -1;
  double beta1 = 0, beta2 = 0;  // adam
  double rate_decay = 0;        // adagrad
  bool from_zero = false;       // sgd: the first step is dampened too

  // Arrays of theta's size that the rule keeps: moments in the order of `Rule.slots`, contract.py.
  int slots() const {
    const cpu::Optimiser& o = optimiser;
    switch (o.kind) {
      case cpu::OptimiserKind::kSgd: return o.momentum != 0;
      case cpu::OptimiserKind::kAdagrad: return 1;
      case cpu::OptimiserKind::kRmsprop: return 1 + (o.momentum != 0);
      case cpu::OptimiserKind::kAdadelta: return 2;
      case cpu::OptimiserKind::kAdam: return 2;
    }
    return 0;
  }

  // The step after `done` others, at this learning rate.
  cpu::Optimiser at(int64_t done, double rate) const {
    cpu::Optimiser o = optimiser;
    const double number = static_cast<double>(done + 1);
    o.undamped = done == 0 && !from_zero;
    o.rate = rate;
    o.step_size = rate;
    if (o.kind == cpu::OptimiserKind::kAdagrad)
      o.step_size = rate / (1 + static_cast<double>(done) * rate_decay);
    if (o.kind == cpu::OptimiserKind::kAdam) {
      o.step_size = rate / (1 - std::pow(beta1, number));
      o.root = std::sqrt(1 - std::pow(beta2, number));
      o.decay = 1 - beta1, o.decay2 = beta2;
    }
    return o;
  }
};

}  // namespace pylandscape
