// A network that stays in a block's shared memory: what the planner (program/resident_plan.h)
// hands to the kernel (cuda/resident.cu).
//
// A column is one sample at one point. Values are rows of an arena (arena_rows, columns) in shared
// memory, so that neighbouring threads work on neighbouring samples; `groups` threads share a
// column and divide the rows among themselves. The weights that a point moves, or that a step reads,
// lie beside it (weights, points). Rows that are the same at all points are read from one matrix in device
// memory (external_rows, samples).
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/host_device.h"
#include "cpu/kernels.h"

namespace pylandscape::resident {

constexpr int kMaxSteps = 44;
constexpr int kMaxThreads = 256;
constexpr int kWarp = 32;
constexpr int kWidest = 8;  // rows of a panel at most: 8, 4, 2 or 1
constexpr int32_t kFill = INT32_MIN;  // in a gather's index: the constant `a`

enum class Kind : int32_t {
  kCombine,  // out = z[0] + sum_j c[direction j] z[1 + j] + bias: m rows each, z at x; k directions,
             // their numbers from `index` on in the list; the bias begins anew after `inner` rows
  kLinear,   // (outer, k) -> (outer, m); weight: panels, bias (m,)
  kUnary,
  kBinary,
  kLayerNorm,  // (outer, k)
  kSoftmax,    // (outer, k, inner)
  kGather,     // row f is row index[f]
  kExpand,     // row f is weight index[f]
};

// Rows: r >= 0 is row r of the arena, r < 0 row -1 - r of the external matrix. Weights: first
// element in the packed weights, or -1.
struct Step {
  Kind kind;
  int32_t x, y, out;
  int32_t weight, bias;
  int32_t outer, k, m, inner;  // elementwise, gather, expand: m rows
  int32_t index;
  int32_t function;  // cpu::Unary or cpu::Binary
  int32_t relu, log;
  double a, b;
};

// Row r + i of a value whose first row is r.
PL_HOST_DEVICE constexpr int32_t row_after(int32_t r, int32_t i) { return r >= 0 ? r + i : r - i; }

struct Program {
  int32_t magic;
  int32_t steps;
  int32_t output, features;  // rows of the result
  int32_t arena_rows, external_rows;
  int32_t weights;     // packed elements of a point
  int32_t index_size;  // entries of the index list; the first `weights` of them say where each
                       // packed element comes from: an offset in theta, or -1 - offset in the
                       // constants
  int32_t directions;  // width of the coordinates: directions, or n of free points
  int32_t free_points;
  int32_t samples, target_rows;
  int32_t columns, groups, points;  // of a block
  cpu::LossArgs loss;  // its pointers are set at the launch
  int32_t loss_weights, pos_weights, class_targets;  // how many, how many, whether
  Step step[kMaxSteps];

  static constexpr int32_t kMagic = 0x50524c31;
  PL_HOST_DEVICE int32_t threads() const { return columns * groups; }
  // Points of a tile of samples share the arena where there is more than one.
  PL_HOST_DEVICE int32_t tiles() const { return points > 1 ? 1 : (samples + columns - 1) / columns; }
  PL_HOST_DEVICE int32_t parts() const { return points > 1 ? 1 : (samples + kWarp - 1) / kWarp; }
};
static_assert(std::is_trivially_copyable_v<Program>, "it is a kernel's parameter");

// Panel p of m rows: as many of kWidest rows as there are, then one each of 4, 2 and 1 as needed.
struct Panels {
  int32_t whole, rest;
  PL_HOST_DEVICE constexpr explicit Panels(int32_t m) : whole(m / kWidest), rest(m % kWidest) {}
  PL_HOST_DEVICE constexpr int32_t count() const {
    return whole + (rest >> 2 & 1) + (rest >> 1 & 1) + (rest & 1);
  }
};

// Bytes of dynamic shared memory: weights, arena, and the columns' losses where points share them.
PL_HOST_DEVICE constexpr int64_t round_up_16(int64_t x) { return (x + 15) / 16 * 16; }
PL_HOST_DEVICE constexpr int64_t weight_bytes(int64_t weights, int64_t points, int64_t size) {
  return round_up_16(weights * points * size);
}
PL_HOST_DEVICE constexpr int64_t shared_bytes(int64_t weights, int64_t points, int64_t rows, int64_t columns,
                               int64_t size) {
  return weight_bytes(weights, points, size) + round_up_16(rows * columns * size) +
         (points > 1 ? 2 * columns * 8 : 0);
}

}  // namespace pylandscape::resident
