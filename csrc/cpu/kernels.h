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
  kClamp,     // min(max(x, a), b), NaN stays; at the bounds the slope is 1
  kHardtanh,  // the same, but the slope at the bounds is 0
  kSquare,
  kAbs,
  kExp,
  kHardswish,  // x min(max(x + 3, 0), 6) / 6
  kMish,       // x tanh(log(1 + exp(x)))
  kSoftsign,   // x / (1 + |x|)
  kThreshold,  // x > a ? x : b, NaN stays
  kLog,
  kLog1p,
  kSqrt,
  kRsqrt,
  kReciprocal,  // a / x
  kPower,       // x^a
  kSin,
  kCos,
  kErf,
  kLength,  // sqrt(x) of a sum of squares: at 0 the slope is 0, and there is no curvature (NaN)
  kPositive,  // max(x, 0) of a PReLU: at 0 the slope is 0, and there are no tangents (NaN)
};
constexpr int kUnaryCount = 30;

enum class Binary : int { kAdd, kSub, kMul, kDiv };
constexpr int kBinaryCount = 4;

// One step of a recurrent cell. From the products x and h of its input and its last hidden state
// (biases included, torch's order of gates):
//   kLstm  i, f, o = sigmoid(x + h), g = tanh(x + h) of gates (i, f, g, o);
//          y = [o tanh(c); c], c = f state + i g
//   kGru   r, z = sigmoid(x + h), n = tanh(x + r h) of gates (r, z, n); y = n + z (state - n)
enum class Cell : int { kLstm, kGru };
constexpr int64_t cell_gates(Cell kind) { return kind == Cell::kLstm ? 4 : 3; }
template <typename T>
struct CellInputs {  // (gates * hidden, cols) twice, (hidden, cols)
  T *x, *h, *state;
};

// Targets of a tile, column by column. `index` (outer, inner, cols): the class, or -1 for "does not
// count" (ignored, or a padding column). `dense` (features, cols): regression targets, class
// probabilities or labels. Exactly one is set.
struct Targets {
  const int32_t* index = nullptr;
  const double* dense = nullptr;
};

// One term for each output v with its target t, but for the first two:
enum class Loss : int {
  kCrossEntropy,
  kNll,
  kMse,            // (v - t)^2
  kBceWithLogits,  // (1 - t) v + (1 + (pos_weight - 1) t) log(1 + exp(-v))
  kHuber,          // |v - t| < a ? (v - t)^2 / 2 : a (|v - t| - a / 2)
  kSmoothL1,       // |v - t| < a ? (v - t)^2 / (2 a) : |v - t| - a / 2; a = 0: |v - t|
  kBce,            // -t log v - (1 - t) log(1 - v), each logarithm at least -100
  kKlDiv,          // t (log t - v), 0 where t = 0
  kPoissonLog,     // exp(v) - t v, and where b: + t log t - t + log(2 pi t) / 2 for t > 1
  kPoisson,        // v - t log(v + a), and the same
};

struct LossArgs {
  Loss kind;
  int64_t classes;  // of (outer, classes, inner) features; elementwise losses: classes = features
  int64_t inner;
  double label_smoothing;
  const double* weight;      // (classes,) or null; elementwise losses: (features,) or null
  const double* pos_weight;  // (features,) or null
  int64_t outer;
  double a, b;  // numbers of the loss
};

// Layer norm: `outer` groups of `size` rows each, one gain for each of the `size`. Group norm
// (pixels, outer groups, channels of a group): a group is its channels at all pixels, with one gain
// for each channel of each group.
struct NormArgs {
  int64_t outer, size;
  double eps;
  int64_t pixels = 1;
  bool channels = false;  // group norm
};
struct SoftmaxArgs {
  bool log;
  int64_t outer, size, inner;
};

// z (outer, m, n) from x (outer, m, k) and y (outer, k, n): where their elements are, in rows. Rows
// of x and y may be read several times.
struct MatmulArgs {
  int64_t outer, m, n, k;
  int64_t xi, xk, yk, yj, zi, zj;                 // from one i, k, j to the next
  const int64_t *x_outer, *y_outer, *z_outer;  // (outer,) of (i, k, j) = 0
};

constexpr int64_t kMatmulDepth = 80;  // of a sum over k that is one chain
constexpr int64_t kQueries = 12;      // of attention at a time: whole micro-tiles of 4, 3 or 2 rows

// z (outer, m, values.n) = softmax(scores) y, over n. Of the scores (outer, m, n) only those of
// kQueries of m exist at a time.
struct AttentionArgs {
  MatmulArgs scores, values;  // values.k = scores.n; where the weights would lie is not read
  const int64_t* seen;  // (outer * m,), by row of the scores: how many keys it reads, the first ones;
                        // null: all
  bool affine;          // scores become a x + b first
  double a, b;
  int64_t room() const {  // vectors that it works in
    const int64_t parts = (scores.n + kMatmulDepth - 1) / kMatmulDepth;
    return scores.k * scores.n + (scores.n + parts) * values.n + kQueries * (scores.n | 1);
  }
};

// Rows of the input and output run through (h, w, channel).
struct ConvArgs {
  int64_t groups, channels, rows;  // input and output channels of one group
  int64_t in_h, in_w, out_h, out_w, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  // Whether products with the input (`pack_pixels`) take it patch by patch: few channels would
  // leave most lanes empty.
  bool by_patches() const { return groups == 1 && channels <= 4 && kernel_h * kernel_w > 1; }
};

// kMax: derivatives go to the first of equal maxima. kMaxEven: to all of them, evenly.
// kSum: times a factor.
enum class Pool : int { kMax, kMaxEven, kSum };

// Pixels of `channels` consecutive rows each: output pixel o is taken over the input pixels
// index[bounds[o]] .. index[bounds[o + 1] - 1], at least one for a maximum.
struct PoolArgs {
  Pool mode;
  int64_t outputs, channels;
  const int64_t *bounds, *index;
  const double* factor;  // (outputs,) of a sum, or of each tap (`index`) where `per_tap`; or null
  bool per_tap;
};

// What a convolution does to its sums: times scale plus shift (channels,), plus `add` (features,
// cols), max(., 0). Each may be null.
template <typename T>
struct Epilogue {
  const T *scale, *shift, *add;
  bool relu;
};

// Batch norm by the batch's own statistics, (channels,) each: y = x scale + shift, then max(., 0)
// when relu; normalised z = x inverse + centre. Backward, dx = dy scale + x slope + offset.
template <typename T>
struct OwnNorm {
  const T *scale, *shift, *inverse, *centre, *slope, *offset;
  bool relu;
};

// Its tangents, (channels,) each: ry = rx scale + x slope + offset where relu lets through; of the
// normalised, rz = rx inverse + x along + around. Backward, where a is its OwnNorm:
// rdx = rdy a.scale + dy bend + rx a.slope + x curve + base.
template <typename T>
struct OwnNormTangent {
  const T *slope, *offset, *along, *around, *bend, *curve, *base;
};

// One step of an optimiser, as torch.optim takes it. All decay rates are those of torch's
// hyperparameters but for Adam, whose decay is 1 - beta1 and decay2 is beta2. Roots are
// sqrt(. + inside) + eps.
enum class OptimiserKind : int { kSgd, kAdagrad, kRmsprop, kAdadelta, kAdam };
struct Optimiser {
  OptimiserKind kind;
  bool undamped;  // SGD's momentum becomes the gradient, as at torch's first step
  bool nesterov;
  bool decoupled;  // weight decay scales theta instead of being added to the gradient
  double rate, step_size;  // learning rate; the same with the rule's corrections
  double momentum, dampening, weight_decay, decay, decay2, inside, eps;
  double root;  // sqrt(1 - beta2^t)
};

constexpr int64_t kDirectColumns = 256;  // of `outer_add_rows`: the widest tile

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
  // y (m, cols) = z[0] + sum_j c[j] z[1 + j] + bias, then max(., 0) when relu. z[j] (m, cols).
  void (*combine)(int64_t m, int64_t cols, int64_t count, const T* const* z, const T* c,
                  const T* bias, bool relu, T* y);
  // out (n,) = base + sum_j c[j] d[j], j = 0 .. count-1 in order; n a multiple of vector_length.
  void (*perturb)(int64_t n, int64_t count, const T* base, const T* const* d, const T* c, T* out);
  // y (n,) = f(x); in place allowed.
  void (*unary)(Unary f, double a, double b, int64_t n, const T* x, T* y);
  // first (n,) = f'(x), second (n,) = f''(x), almost everywhere.
  void (*unary_derivatives)(Unary f, double a, double b, int64_t n, const T* x, T* first,
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

  // dst: weights (groups * rows, channels, kernel_h, kernel_w) as `conv` wants them.
  void (*pack_conv)(const ConvArgs& a, const T* src, T* dst);
  void (*conv)(const ConvArgs& a, int64_t cols, const T* packed, const T* x, const Epilogue<T>& e,
               T* y);
  // y = x * scale[c] + shift[c], then max(., 0) when relu; rows (pixels, channels); in place.
  void (*channel_affine)(int64_t pixels, int64_t channels, int64_t cols, const T* scale,
                         const T* shift, bool relu, const T* x, T* y);
  // mean (channels,) and sum of the squared deviations from it, over pixels and the first `samples`
  // columns.
  void (*channel_moments)(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                          const T* x, double* mean, double* squares);

  // y (size, cols): column c is row ids[c] of the table (rows, size); zero where that is `padding`.
  void (*embedding)(int64_t size, int64_t cols, int64_t padding, const T* table, const T* ids, T* y);
  // y: (2 hidden, cols) of an LSTM, (hidden, cols) of a GRU.
  void (*cell)(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in, T* y);

  // loss (cols,): each column's sum of loss terms, in double from the outputs (features, cols).
  // correct (cols,) or null: how many of the column's targets the largest output hits.
  void (*loss)(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
               double* loss, double* correct);

  // gradient (features, cols): d loss / d outputs of the same loss; zero in ignored columns.
  void (*loss_gradient)(const LossArgs& args, const Targets& targets, int64_t cols,
                        const T* outputs, T* gradient);
  // product (features, cols) = (d^2 loss / d outputs^2) tangent.
  void (*loss_hvp)(const LossArgs& args, const Targets& targets, int64_t cols, const T* outputs,
                   const T* tangent, T* product);

  // Derivatives (reverse.inl): dy is the adjoint of y, r marks a tangent. All but the tangents and
  // packings add to their outputs. Adjoints and tangents may be null where they are zero.
  // dst: blocks of 2 * vector_length rows of x (k, cols), each (cols, rows), the last with zeros.
  void (*pack_columns)(int64_t k, int64_t cols, const T* x, T* dst);
  // dst = panels of the transpose of src (m, k).
  void (*pack_transposed)(int64_t m, int64_t k, const T* src, T* dst);
  // g (m, k), rows `stride` apart, += the sum of `count` products dy x^T; dy[i] (m, cols[i]) as panels
  // (pack), x[i] (k, cols[i]) as blocks (pack_columns).
  void (*outer_add)(int64_t m, int64_t k, int64_t stride, int64_t count, const int64_t* cols,
                    const T* const* dy, const T* const* x, double* g);
  // Each g[i] (m, k) += dy[i] x^T for `count` of them; x (k, cols) stands as it is, cols at most
  // kDirectColumns: a block of it is packed at a time, which stays in the first-level cache.
  void (*outer_add_rows)(int64_t m, int64_t k, int64_t cols, int64_t count, const T* const* dy,
                         const T* x, double* const* g);
  // sums (m,) += the rows' sums.
  void (*row_sums_add)(int64_t m, int64_t cols, const T* x, double* sums);
  // out (n,) += scale x y; y may be null (ones).
  void (*product_add)(int64_t n, T scale, const T* x, const T* y, T* out);
  // gradient = 0 where a relu let nothing through.
  void (*mask)(int64_t n, const T* output, T* gradient);
  // x (features, cols): column c times weights[c].
  void (*scale_columns)(int64_t features, int64_t cols, const T* weights, T* x);
  // dots (cols,) = the columns' inner products.
  void (*column_dots)(int64_t features, int64_t cols, const T* x, const T* y, T* dots);
  // q = x / y.
  void (*divide_tangent)(int64_t n, const T* y, const T* q, const T* rx, const T* ry, T* rq);
  void (*divide_reverse)(int64_t n, const T* y, const T* q, const T* dq, T* dx, T* dy);
  void (*divide_reverse_tangent)(int64_t n, const T* y, const T* q, const T* dq, const T* ry,
                                 const T* rq, const T* rdq, T* rdx, T* rdy);
  void (*layer_norm_tangent)(const NormArgs& a, int64_t cols, const T* gain, const T* x,
                             const T* rx, const T* rgain, const T* rshift, T* ry);
  void (*layer_norm_reverse)(const NormArgs& a, int64_t cols, const T* gain, const T* x,
                             const T* dy, T* dx, double* dgain, double* dshift);
  void (*layer_norm_reverse_tangent)(const NormArgs& a, int64_t cols, const T* gain,
                                     const T* rgain, const T* x, const T* rx, const T* dy,
                                     const T* rdy, T* rdx, double* rdgain, double* rdshift);
  void (*softmax_tangent)(const SoftmaxArgs& a, int64_t cols, const T* y, const T* rx, T* ry);
  void (*softmax_reverse)(const SoftmaxArgs& a, int64_t cols, const T* y, const T* dy, T* dx);
  void (*softmax_reverse_tangent)(const SoftmaxArgs& a, int64_t cols, const T* y, const T* ry,
                                  const T* dy, const T* rdy, T* rdx);

  // dst: weights as `conv_reverse` wants them.
  void (*pack_conv_transposed)(const ConvArgs& a, const T* src, T* dst);
  // dx += W^T dy.
  void (*conv_reverse)(const ConvArgs& a, int64_t cols, const T* packed, const T* dy, T* dx);
  // dst (pixels, blocks of vector_length channels, cols, vector_length) of x (pixels, channels,
  // cols), the last block filled up with zeros; or, by patches, of each output pixel's own rows
  // (channel, tap).
  void (*pack_pixels)(const ConvArgs& a, int64_t cols, const T* x, T* dst);
  // g (weights) += dy x^T; x by pack_pixels.
  void (*conv_outer_add)(const ConvArgs& a, int64_t cols, const T* dy, const T* x, double* g);
  // g (weights, cols): the same for every column, x as it stands; overwritten.
  void (*conv_outer_lanes)(const ConvArgs& a, int64_t cols, const T* dy, const T* x, T* g);
  // y += x * scale[c] + shift[c]; rows (pixels, channels); shift may be null.
  void (*channel_affine_add)(int64_t pixels, int64_t channels, int64_t cols, const T* scale,
                             const T* shift, const T* x, T* y);
  // sums[c] += sum of (x * scale[c] + shift[c]) * y over pixels and columns.
  void (*channel_dots)(int64_t pixels, int64_t channels, int64_t cols, const T* scale,
                       const T* shift, const T* x, const T* y, double* sums);
  // table (rows, size): row ids[c] += column c of dy (size, cols), for the first `samples` columns
  // whose id is not `padding`.
  void (*embedding_add)(int64_t size, int64_t cols, int64_t samples, int64_t padding, const T* ids,
                        const T* dy, double* table);
  void (*cell_tangent)(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in,
                       CellInputs<const T> r, T* ry);
  void (*cell_reverse)(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in, const T* dy,
                       CellInputs<T> d);
  void (*cell_reverse_tangent)(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in,
                               CellInputs<const T> r, const T* dy, const T* rdy,
                               CellInputs<T> rd);

  // A few columns of an orthonormal basis Q (rows, stride); sums in double (basis.inl).
  // sums (rows,) += Q w.
  void (*basis_dots)(int64_t rows, int64_t cols, const T* q, int64_t stride, const T* w,
                     double* sums);
  // w <- w - Q^T c (c (rows,)), or w = from - Q^T c; norm += the squares of the new w.
  void (*basis_subtract)(int64_t rows, int64_t cols, const T* q, int64_t stride, const double* c,
                         T* w, double* norm);
  void (*basis_subtract_from)(int64_t rows, int64_t cols, const T* q, int64_t stride,
                              const double* c, const double* from, T* w, double* norm);
  // w <- factor w, in double, rounded once.
  void (*scale)(int64_t cols, double factor, T* w);
  // q . p over cols elements.
  double (*dot_double)(int64_t cols, const T* q, const double* p);

  // Point lanes: here a "column" is (sample, point) with vector_length points innermost, and
  // every parameter is a vector over the points. w (m, k, lanes), bias (m, lanes) or null.
  void (*linear_lanes)(int64_t m, int64_t samples, int64_t k, const T* w, const T* x, const T* bias,
                       bool relu, T* y);
  // out (n, lanes) = base[i] + sum_j c[j * lanes + lane] d[j][i].
  void (*perturb_lanes)(int64_t n, int64_t count, const T* base, const T* const* d, const T* c,
                        T* out);
  // out (n, lanes) of rows (lanes) of n each.
  void (*to_lanes)(int64_t n, const T* const* rows, T* out);

  // y (outputs * channels, cols) of x. NaN in a window is its maximum.
  void (*pool)(const PoolArgs& a, int64_t cols, const T* x, T* y);
  // ry = the tangent along rx; dx += the adjoint. Sums do not read x.
  void (*pool_tangent)(const PoolArgs& a, int64_t cols, const T* x, const T* rx, T* ry);
  void (*pool_reverse)(const PoolArgs& a, int64_t cols, const T* x, const T* dy, T* dx);
  // z = scale x y, or += where `add`; sample by sample.
  void (*matmul)(const MatmulArgs& a, int64_t cols, T scale, bool add, const T* x, const T* y,
                 T* z);

  // Both with their scale; room: a.room() vectors.
  void (*attention)(const AttentionArgs& a, int64_t cols, T scale, T second, const T* queries,
                    const T* keys, const T* values, T* room, T* z);

  // Then max(., 0) when relu; gain and shift (channels,) or null. Not in place.
  void (*group_norm)(const NormArgs& a, int64_t cols, const T* gain, const T* shift, bool relu,
                     const T* x, T* y);

  // As channel_moments, in one pass over x.
  void (*batch_moments)(int64_t pixels, int64_t channels, int64_t cols, int64_t samples, const T* x,
                        double* mean, double* squares);
  // sums (2, channels) += the sums of dy and of dy z over the first `samples` columns; dy is taken as
  // zero where relu let nothing through.
  void (*own_norm_sums)(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                        const OwnNorm<T>& a, const T* x, const T* dy, double* sums);
  // dx = (see OwnNorm), or += where `add`; zero beyond the first `samples` columns.
  void (*own_norm_reverse)(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                           const OwnNorm<T>& a, const T* x, const T* dy, bool add, T* dx);
  // Tangents of the same. rx may be null: zero.
  void (*own_norm_tangent)(int64_t pixels, int64_t channels, int64_t cols, const OwnNorm<T>& a,
                           const OwnNormTangent<T>& r, const T* x, const T* rx, T* ry);
  // sums (2, channels) += those of rdy and of rdy z + dy rz, which are zero in padding columns; as
  // own_norm_sums.
  void (*own_norm_tangent_sums)(int64_t pixels, int64_t channels, int64_t cols,
                                const OwnNorm<T>& a, const OwnNormTangent<T>& r, const T* x,
                                const T* rx, const T* dy, const T* rdy, double* sums);
  // rdx = (see OwnNormTangent), or += where `add`; rx is not null. As own_norm_reverse.
  void (*own_norm_reverse_tangent)(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                                   const OwnNorm<T>& a, const OwnNormTangent<T>& r, const T* x,
                                   const T* rx, const T* dy, const T* rdy, bool add, T* rdx);

  // theta (n,) and the optimiser's slots (n,) each by one step with the gradient scale * g (n,), in
  // one pass. No alignment is asked for, and n may be anything (optimiser.inl).
  void (*optimise)(const Optimiser& o, int64_t n, double scale, const double* g, T* theta,
                   T* const* slots);
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
