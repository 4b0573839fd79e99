// Hessians of a small network at many points on a GPU: what the planner (points/hessian_plan.h)
// hands to the kernel (cuda/hessians.cu). The formula is that of points/points.h.
//
// A team of threads (a warp, or a block) takes one point through all samples, a tile of `columns`
// samples at a time, and holds everything in shared memory. Rows, each over the tile's samples:
// row 0 is ones, then the data, then what the steps make. Of `tangents` directions at once, each
// row from `first` on has a tangent, and its adjoint has one. Entries of the Hessian are summed in a
// buffer that holds all that a batch of directions gives; of a network whose Hessian does not fit,
// every batch is another team's.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/host_device.h"
#include "cpu/kernels.h"

namespace pylandscape::hessian {

constexpr int kMaxSteps = 30;
constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;
constexpr int kGroup = 32;            // samples whose sum is added as one
constexpr int kWide = 6, kWarpWide = 3, kNarrow = 3;  // rows (of a block, of a warp) and columns of
                                                      // the Hessian that a thread sums at once
constexpr int32_t kFill = INT32_MIN;  // in a gather's index: the constant `a`
constexpr int32_t kOnes = 0;

enum class Kind : int32_t {
  kLinear,   // (outer, k) -> (outer, m); k = 0: parameters as they are, in every sample
  kUnary,    // elementwise: m rows
  kBinary,
  kAffine,   // row r times scale[r % k] plus shift[r % k]: weight and bias; m rows
  kNorm,     // `outer` groups of k rows, at `inner` pixels (cpu::NormArgs)
  kSoftmax,  // (outer, k, inner)
  kGather,   // row r is row index[r]: m rows
  kSum,      // outer pixels of k channels: factor (weight) times the sum of rows
             // index[bounds[o]] .. index[bounds[o + 1] - 1] + channel; bounds first, then index
  kMatmul,   // a x y (cpu::MatmulArgs): (outer, m, k) and (outer, k, inner); index: the strides
             // xi, xk, yk, yj, zi, zj, then the first rows of each of `outer` in x, in y and in out
};

struct Step {
  Kind kind;
  int32_t x, y, out;      // rows
  int32_t weight, bias;   // places in the source (theta, then constants), or -1
  int32_t row, column;    // element (r, i) of the weight: weight + r * row + i * column
  int32_t outer, k, m, inner;
  int32_t index;          // first entry in the list
  int32_t function;       // cpu::Unary or cpu::Binary
  int32_t relu, log;
  int32_t bent;           // row of a unary step among those that keep f' and f''
  int32_t moves;          // whether a parameter reaches it
  int32_t inputs, columns;  // parameters of a row of the output: of its inputs, and with the bias
  int32_t place, item;    // its first parameter, and its first item (below)
  double a, b;
};

// One element of each table of the list.
struct Item {  // parameters of a row of a step: a tile of them
  int32_t step, row, first, place;  // row of the output (of the first of `outer`), first column
};
struct Tangent {
  int32_t step, row, x, at;  // rows of the output and of the first input; where its entries begin
};
struct Round {  // tangents at once
  int32_t first, count;
};
struct Entries {  // a row of the Hessian: its parameter, and where that of place 0 would stand
  int32_t place, at;
};
struct Batch {  // rounds, and the rows that they give
  int32_t first, count, rows, row_count;
};

struct Program {
  int32_t magic;
  int32_t steps;
  int32_t features, rows, first;  // of the data; of all; the first row that a step makes
  int32_t bent_rows, kept_rows;   // kept: what the loss' second derivative needs
  int32_t output, outputs;
  int32_t n, source;              // of theta; with the constants
  int32_t samples, target_rows;
  int32_t columns, tangents;      // of a tile; at once
  int32_t threads, points;        // of a team; teams of a block
  int32_t batches, buffer;        // doubles of a batch's Hessian
  int32_t items, item_table, tangent_table, round_table, batch_table, row_table, parameter_table;
  int32_t list_size;
  int32_t loss_weights, pos_weights, class_targets;  // how many, how many, whether
  cpu::LossArgs loss;             // its pointers are set at the launch
  Step step[kMaxSteps];

  static constexpr int32_t kMagic = 0x504c4831;
};
static_assert(std::is_trivially_copyable_v<Program>, "it is a kernel's parameter");
static_assert(sizeof(Program) <= 3800, "kernels have 4 KiB of parameters");

// A multiple of two, of an odd number of pairs: pairs of samples are read at once, and those of
// neighbouring rows are in different banks.
PL_HOST_DEVICE constexpr int32_t row_stride(int32_t columns) { return (columns + 1) / 4 * 4 + 2; }

// Where everything of one team lies, in doubles; pairs are aligned.
struct Layout {
  int32_t stride, wide_stride;  // of rows, and of rows of tangents
  int32_t each;                 // columns of one direction in those
  int32_t source, values, adjoints, slopes, curves, kept, tangents, adjoint_tangents, buffer,
      gradient, terms, flags, total;
  PL_HOST_DEVICE explicit Layout(const Program& p)
      : stride(row_stride(p.columns)),
        wide_stride(row_stride((p.columns + 1) / 2 * 2 * p.tangents)),
        each((p.columns + 1) / 2 * 2) {
    const int32_t made = p.rows - p.first, some = p.tangents > 0 ? 1 : 0;
    int32_t at = 0;
    const auto take = [&at](int32_t size) {
      const int32_t from = at;
      at += (size + 1) / 2 * 2;
      return from;
    };
    source = take(p.source);
    values = take(p.rows * stride), adjoints = take(made * stride);
    slopes = take(p.bent_rows * stride), curves = take(p.bent_rows * stride);
    kept = take(p.kept_rows * stride);
    tangents = take(some * (made + 1) * wide_stride);  // the first row is zeros
    adjoint_tangents = take(some * made * wide_stride);
    buffer = take(p.buffer), gradient = take(p.n);
    terms = take(stride), flags = take(2 + p.threads / kWarp);
    total = at;
  }
};

}  // namespace pylandscape::hessian
