// The kernels of the program: one table per element type and instruction set.
//
// A tile is a set of `cols` samples. Every value of a tile is a matrix (features, cols), row-major:
// the samples are the vector lanes, so that each op is the same arithmetic on every lane.
// `cols` is a multiple of `vector_length`; buffers are 64-byte aligned; no arguments alias unless
// an op says that it works in place.
#pragma once
#include <cstdint>

namespace pylandscape::cpu {

enum class Unary : int {
  kAffine,     // a x + b
  kRelu,       // max(x, 0), NaN stays
  kLeakyRelu,  // x >= 0 ? x : a x
  kTanh,
  kSigmoid,
  kGelu,      // x Phi(x), exact
  kGeluTanh,  // the tanh approximation
  kSilu,      // x sigmoid(x)
  kSoftplus,  // log(1 + exp(a x)) / a, linear where a x > b
  kElu,       // x > 0 ? b x : b a (exp(x) - 1)
  kClamp,     // min(max(x, a), b), NaN stays
  kSquare,
  kAbs,
  kExp,
};
constexpr int kUnaryCount = 14;

enum class Binary : int { kAdd, kSub, kMul, kDiv };
constexpr int kBinaryCount = 4;

// Targets of a tile, column by column. `index` (inner, cols): the class, or -1 for "does not
// count" (ignored, or a padding column). `dense` (features, cols): regression targets, class
// probabilities or labels. Exactly one is set.
struct Targets {
  const int32_t* index = nullptr;
  const double* dense = nullptr;
};

enum class Loss : int { kCrossEntropy, kNll, kMse, kBceWithLogits };

struct LossArgs {
  Loss kind;
  int64_t classes;  // of (classes, inner) features; for elementwise losses classes = features
  int64_t inner;
  double label_smoothing;
  const double* weight;      // (classes,) or null; elementwise losses: (features,) or null
  const double* pos_weight;  // (features,) or null
};

template <typename T>
struct Kernels {
  int vector_length;
  int panel_rows;  // rows of a packed panel at most

  // dst = panels of src (m, k) row-major: panel after panel, each (k, rows), see panel_split.
  void (*pack)(int64_t m, int64_t k, const T* src, T* dst);
  // y (m, cols) = W x + bias, then max(., 0) when relu. W packed, x (k, cols), bias (m,) or null.
  void (*linear)(int64_t m, int64_t cols, int64_t k, const T* packed, const T* x, const T* bias,
                 bool relu, T* y);
  // y (m, cols) += W x.
  void (*linear_add)(int64_t m, int64_t cols, int64_t k, const T* packed, const T* x, T* y);
  // g (m, k) += sum over columns of dy (m, cols) x (k, cols)^T, in double.
  void (*outer_add)(int64_t m, int64_t k, int64_t cols, const T* dy, const T* x, double* g);
  // y (m, cols) = z[0] + sum_j c[j] z[1 + j] + bias, then max(., 0) when relu. z[j] (m, cols).
  void (*combine)(int64_t m, int64_t cols, int64_t count, const T* const* z, const T* c,
                  const T* bias, bool relu, T* y);
  // out (n,) = base + sum_j c[j] d[j], j = 0 .. count-1 in order; n a multiple of vector_length.
  void (*perturb)(int64_t n, int64_t count, const T* base, const T* const* d, const T* c, T* out);
  // y (n,) = f(x); in place allowed.
  void (*unary)(Unary f, double a, double b, int64_t n, const T* x, T* y);
  // first (n,) = f'(x), second (n,) = f''(x), almost everywhere. False when f has no such kernel.
  bool (*unary_derivatives)(Unary f, double a, double b, int64_t n, const T* x, T* first,
                            T* second);
  // out (n,) = x op y; in place allowed.
  void (*binary)(Binary op, int64_t n, const T* x, const T* y, T* out);
  // y (features, cols): row f filled with values[f].
  void (*fill_rows)(int64_t features, int64_t cols, const T* values, T* y);
  // Over the `size` features of each of `outer` groups; gain and shift (size,) or null; in place.
  void (*layer_norm)(int64_t outer, int64_t size, int64_t cols, double eps, const T* gain,
                     const T* shift, const T* x, T* y);
  // Softmax (or its log) over `size`, features laid out (outer, size, inner); in place allowed.
  void (*softmax)(bool log, int64_t outer, int64_t size, int64_t inner, int64_t cols, const T* x,
                  T* y);

  // loss (cols,): each column's sum of loss terms, in double from the outputs (features, cols).
  // correct (cols,) or null: how many of the column's targets the largest output hits.
  void (*loss)(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
               double* loss, double* correct);

  // gradient (features, cols): d loss / d outputs of the same loss; zero in ignored columns. False
  // when the loss has no such kernel.
  bool (*loss_gradient)(const LossArgs& args, const Targets& targets, int64_t cols,
                        const T* outputs, T* gradient);
  // product (features, cols) = (d^2 loss / d outputs^2) tangent.
  void (*loss_hvp)(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
                   const T* tangent, T* product);

  // Point lanes: here a "column" is (sample, point) with vector_length points innermost, and
  // every parameter is a vector over the points. w (m, k, lanes), bias (m, lanes) or null.
  void (*linear_lanes)(int64_t m, int64_t samples, int64_t k, const T* w, const T* x, const T* bias,
                       bool relu, T* y);
  // out (n, lanes) = base[i] + sum_j c[j * lanes + lane] d[j][i].
  void (*perturb_lanes)(int64_t n, int64_t count, const T* base, const T* const* d, const T* c,
                        T* out);
};

// Panel p of m rows: rows are dealt out evenly over ceil(m / panel_rows) panels.
struct PanelSplit {
  int64_t panels, small, larger;  // `larger` panels of small + 1 rows come first
  PanelSplit(int64_t m, int64_t panel_rows)
      : panels((m + panel_rows - 1) / panel_rows),
        small(panels > 0 ? m / panels : 0),
        larger(panels > 0 ? m % panels : 0) {}
  int64_t rows(int64_t panel) const { return small + (panel < larger ? 1 : 0); }
  int64_t first(int64_t panel) const {
    return panel * small + (panel < larger ? panel : larger);
  }
};

template <typename T>
const Kernels<T>& kernels();

#define PL_DECLARE_KERNELS(isa)               \
  namespace isa {                             \
  extern const Kernels<float> kernels_f32;    \
  extern const Kernels<double> kernels_f64;   \
  }
PL_DECLARE_KERNELS(baseline)
PL_DECLARE_KERNELS(avx2)
PL_DECLARE_KERNELS(avx512)
#undef PL_DECLARE_KERNELS

}  // namespace pylandscape::cpu
