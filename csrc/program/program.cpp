#include "program/program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <new>
#include <numeric>
#include <stdexcept>

namespace pylandscape {
namespace {

constexpr int64_t kAlign = 16;  // packed uses start at multiples of this many elements
constexpr int64_t kTileBytes = 256 * 1024;  // what a tile's live values may take: half of L2
constexpr int64_t kMaxTile = 256;
constexpr int64_t kMaxLaneSource = 4096;  // parameters up to which point lanes are used

// Whether every row that two strides reach from each of `outer` lies within 0 .. rows - 1.
bool within(const int64_t* outer, int64_t count, int64_t rows, int64_t n1, int64_t step1,
            int64_t n2, int64_t step2) {
  const int64_t a = (n1 - 1) * step1, b = (n2 - 1) * step2;
  const int64_t low = std::min<int64_t>(a, 0) + std::min<int64_t>(b, 0);
  const int64_t high = std::max<int64_t>(a, 0) + std::max<int64_t>(b, 0);
  return std::all_of(outer, outer + count,
                     [&](int64_t o) { return o + low >= 0 && o + high < rows; });
}

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument("Program: " + message);
}

}  // namespace

template <typename T>
void gather_rows(const std::vector<int64_t>& index, int64_t cols, T fill, const T* x, T* y) {
  each_run(index, [&](int64_t first, int64_t from, int64_t count) {
    if (from < 0) std::fill_n(y + first * cols, count * cols, fill);
    else std::copy_n(x + from * cols, count * cols, y + first * cols);
  });
}

template <typename T>
Buffer<T>::Buffer(int64_t count) : size_(count) {
  if (count == 0) return;
  const int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  void* p = std::aligned_alloc(64, static_cast<size_t>(bytes));
  if (p == nullptr) throw std::bad_alloc();
  std::memset(p, 0, static_cast<size_t>(bytes));
  data_.reset(static_cast<T*>(p));
}

template <typename T>
Program<T>::Program(int64_t n, std::vector<T> constants)
    : kernels_(cpu::kernels<T>()), n_(n), constants_(std::move(constants)) {
  require(n >= 0, "n must not be negative");
}

template <typename T>
int Program<T>::slot(int64_t features) {
  require(output_ < 0, "already finished");
  slots_.push_back(features);
  return static_cast<int>(slots_.size()) - 1;
}

template <typename T>
int64_t Program<T>::in_features(int s) const {
  require(s >= 0 && s < static_cast<int>(slots_.size()), "unknown slot " + std::to_string(s));
  return slots_[s];
}

template <typename T>
int Program<T>::use(int64_t source, int64_t rows, int64_t cols, Use::Packing packing,
                    const cpu::ConvArgs& conv) {
  const int64_t size = rows * cols, first = source >= 0 ? source : -1 - source;
  const int64_t limit = source >= 0 ? n_ : static_cast<int64_t>(constants_.size());
  require(rows >= 0 && cols >= 0 && first + size <= limit,
          "parameter at " + std::to_string(source) + " of " + std::to_string(size) +
              " elements is outside its source of " + std::to_string(limit));
  for (size_t i = 0; i < uses_.size(); ++i) {
    const Use& u = uses_[i];
    if (u.source == source && u.rows == rows && u.cols == cols && u.packing == packing &&
        u.conv.groups == conv.groups && u.conv.channels == conv.channels &&
        u.conv.kernel_h == conv.kernel_h)
      return static_cast<int>(i);
  }
  uses_.push_back({source, rows, cols, packing, packed_size_, conv});
  packed_size_ += round_up(size, kAlign);
  return static_cast<int>(uses_.size()) - 1;
}

template <typename T>
int Program<T>::input(int64_t features) {
  require(slots_.empty(), "the input comes first and once");
  return slot(features);
}

template <typename T>
int64_t Program<T>::constants(int64_t count, const double* values) {
  require(output_ < 0, "already finished");
  const int64_t first = static_cast<int64_t>(constants_.size());
  for (int64_t i = 0; i < count; ++i) constants_.push_back(static_cast<T>(values[i]));
  return -1 - first;
}

template <typename T>
int Program<T>::linear(int x, int64_t outer, int64_t k, int64_t m, int64_t weight,
                       const int64_t* bias, int64_t first, bool transposed) {
  const bool whole = in_features(x) == outer * k;
  require(first >= 0 || whole, "linear: input features are not outer * k");
  require(first + outer * k <= in_features(x), "linear: rows that are not in the input");
  Op op(OpKind::kLinear, {x});
  if (!whole) op.rows = {{first, outer * k}};
  op.outer = outer, op.k = k, op.m = m;
  op.weight =
      use(weight, m, k, transposed ? Use::Packing::kTransposed : Use::Packing::kPanels);
  if (bias != nullptr) op.bias = use(*bias, 1, m);
  op.output = slot(outer * m);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::unary(int x, cpu::Unary f, double a, double b) {
  Op op(OpKind::kUnary, {x});
  op.unary = f, op.a = a, op.b = b;
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::binary(cpu::Binary f, int x, int y) {
  require(in_features(x) == in_features(y), "binary: inputs of different sizes");
  Op op(OpKind::kBinary, {x, y});
  op.binary = f;
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::layer_norm(int x, int64_t outer, int64_t size, double eps, const int64_t* gain,
                           const int64_t* shift) {
  require(in_features(x) == outer * size && size > 0, "layer_norm: features are not outer * size");
  Op op(OpKind::kLayerNorm, {x});
  op.outer = outer, op.k = size, op.a = eps;
  if (gain != nullptr) op.weight = use(*gain, 1, size);
  if (shift != nullptr) op.bias = use(*shift, 1, size);
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::group_norm(int x, int64_t groups, int64_t pixels, int64_t channels, double eps,
                           const int64_t* gain, const int64_t* shift) {
  require(groups > 0 && pixels > 0 && channels > 0 && channels % groups == 0,
          "group_norm: channels are not groups of one size");
  require(in_features(x) == pixels * channels, "group_norm: features are not pixels * channels");
  Op op(OpKind::kGroupNorm, {x});
  op.outer = groups, op.k = pixels * channels / groups, op.inner = pixels, op.a = eps;
  if (gain != nullptr) op.weight = use(*gain, 1, channels);
  if (shift != nullptr) op.bias = use(*shift, 1, channels);
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::softmax(int x, bool log, int64_t outer, int64_t size, int64_t inner) {
  require(in_features(x) == outer * size * inner && size > 0,
          "softmax: features are not outer * size * inner");
  Op op(OpKind::kSoftmax, {x});
  op.log = log, op.outer = outer, op.k = size, op.inner = inner;
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::concat(const std::vector<int>& inputs, int64_t outer) {
  require(!inputs.empty() && outer > 0, "concat: nothing to concatenate");
  Op op(OpKind::kConcat, inputs);
  op.outer = outer;
  int64_t features = 0;
  for (const int x : inputs) {
    require(in_features(x) % outer == 0, "concat: features are not a multiple of outer");
    features += in_features(x);
  }
  op.output = slot(features);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::join(const std::vector<int>& inputs, std::vector<Rows> rows) {
  require(!inputs.empty() && inputs.size() == rows.size(), "join: one range of rows per input");
  Op op(OpKind::kConcat, inputs);
  int64_t features = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    require(rows[i].first >= 0 && rows[i].count >= 0 &&
                rows[i].first + rows[i].count <= in_features(inputs[i]),
            "join: rows that are not in the input");
    features += rows[i].count;
  }
  op.rows = std::move(rows);
  op.output = slot(features);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::embedding(std::vector<int64_t> rows, int64_t count, int64_t size, int64_t padding,
                          int64_t weight) {
  require(count > 0 && size > 0, "embedding: sizes must be positive");
  require(padding >= -1 && padding < count, "embedding: padding is no row");
  for (const int64_t r : rows)
    require(r >= 0 && r < in_features(0), "embedding: a row of the data that is not there");
  Op op(OpKind::kEmbedding, {0});
  op.m = count, op.k = size, op.b = static_cast<double>(padding);
  op.weight = use(weight, count, size);
  op.index = std::move(rows);
  op.output = slot(static_cast<int64_t>(op.index.size()) * size);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::cell(cpu::Cell kind, int64_t hidden, int x, int h, int state, int64_t first) {
  const int64_t gates = cpu::cell_gates(kind) * hidden;
  require(hidden > 0 && in_features(x) == gates && in_features(h) == gates,
          "cell: the products do not have one row per gate and unit");
  require(first >= 0 && first + hidden <= in_features(state), "cell: the state is not in its slot");
  Op op(OpKind::kCell, {x, h, state});
  op.cell = kind, op.k = hidden;
  op.rows = {{0, gates}, {0, gates}, {first, hidden}};
  op.output = slot(kind == cpu::Cell::kLstm ? 2 * hidden : hidden);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::expand(int64_t source, int64_t size, std::vector<int64_t> index) {
  Op op(OpKind::kExpand, {});
  op.weight = use(source, 1, size);
  for (const int64_t i : index) require(i >= 0 && i < size, "expand: index out of range");
  op.index = std::move(index);
  op.output = slot(static_cast<int64_t>(op.index.size()));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::gather(int x, std::vector<int64_t> index, double fill) {
  Op op(OpKind::kGather, {x});
  for (const int64_t i : index)
    require(i >= -1 && i < in_features(x), "gather: index out of range");
  op.index = std::move(index), op.a = fill;
  op.output = slot(static_cast<int64_t>(op.index.size()));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::conv(int x, cpu::ConvArgs a, int64_t weight, const int64_t* bias) {
  require(a.groups > 0 && a.channels > 0 && a.rows > 0 && a.kernel_h > 0 && a.kernel_w > 0 &&
              a.stride_h > 0 && a.stride_w > 0 && a.dilation_h > 0 && a.dilation_w > 0 &&
              a.pad_h >= 0 && a.pad_w >= 0,
          "conv: sizes must be positive");
  require(in_features(x) == a.in_h * a.in_w * a.groups * a.channels,
          "conv: input features are not in_h * in_w * channels");
  a.out_h = (a.in_h + 2 * a.pad_h - a.dilation_h * (a.kernel_h - 1) - 1) / a.stride_h + 1;
  a.out_w = (a.in_w + 2 * a.pad_w - a.dilation_w * (a.kernel_w - 1) - 1) / a.stride_w + 1;
  require(a.in_h + 2 * a.pad_h > a.dilation_h * (a.kernel_h - 1) &&
              a.in_w + 2 * a.pad_w > a.dilation_w * (a.kernel_w - 1),
          "conv: the kernel is larger than the image");
  Op op(OpKind::kConv, {x});
  op.conv = a;
  op.weight = use(weight, a.groups * a.rows, a.channels * a.kernel_h * a.kernel_w,
                  Use::Packing::kConv, a);
  if (bias != nullptr) op.bias = use(*bias, 1, a.groups * a.rows);
  op.output = slot(a.out_h * a.out_w * a.groups * a.rows);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::batch_norm(int x, int64_t outer, int64_t channels, double eps, int64_t mean,
                           int64_t variance, const int64_t* gain, const int64_t* shift) {
  require(in_features(x) == outer * channels, "batch_norm: features are not outer * channels");
  Op op(OpKind::kBatchNorm, {x});
  op.outer = outer, op.k = channels;
  op.norm.eps = eps;
  op.norm.mean = use(mean, 1, channels), op.norm.variance = use(variance, 1, channels);
  if (gain != nullptr) op.norm.gain = use(*gain, 1, channels);
  if (shift != nullptr) op.norm.shift = use(*shift, 1, channels);
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

// Removes the ops whose result reaches no output.
template <typename T>
void Program<T>::drop_unread(std::vector<Op>& ops) const {
  std::vector<bool> read(slots_.size(), false);
  read[output_] = true;
  std::vector<Op> kept;
  for (auto op = ops.rbegin(); op != ops.rend(); ++op) {
    if (!read[op->output]) continue;
    for (const int x : op->inputs) read[x] = true;
    kept.push_back(std::move(*op));
  }
  ops.assign(std::make_move_iterator(kept.rbegin()), std::make_move_iterator(kept.rend()));
}

// A linear op on embedded ids has few different results, one per row of the embedding. Where the
// data hold more ids than that, the results are computed once per point and then looked up.
template <typename T>
void Program<T>::fuse_lookups() {
  std::vector<const Op*> maker(slots_.size(), nullptr);
  for (const Op& op : ops_) maker[op.output] = &op;
  std::vector<Op> found = fused_;
  std::vector<int64_t> ids;  // that a table serves
  for (Op& op : found) {
    const Op* from = op.kind == OpKind::kLinear ? maker[op.inputs[0]] : nullptr;
    if (from == nullptr || from->kind != OpKind::kEmbedding || op.relu || op.k != from->k ||
        uses_[op.weight].transposed() || op.first(0) % op.k != 0 || op.m % kernels_.vector_length != 0)
      continue;
    const Use embedded = uses_[from->weight], weight = uses_[op.weight];
    Op lookup(OpKind::kLookup, {0});
    lookup.outer = embedded.rows, lookup.k = op.k, lookup.m = op.m, lookup.output = op.output;
    const auto first = from->index.begin() + op.first(0) / op.k;
    lookup.index.assign(first, first + op.outer);
    lookup.weight = use(embedded.source, embedded.rows, embedded.cols, Use::Packing::kPanels);
    lookup.second = use(weight.source, op.m, op.k, Use::Packing::kColumns);
    lookup.bias = op.bias;
    const auto same = std::find_if(tables_.begin(), tables_.end(), [&](const Op& table) {
      return table.weight == lookup.weight && table.second == lookup.second &&
             table.bias == lookup.bias;
    });
    lookup.table = static_cast<int>(same - tables_.begin());
    if (same == tables_.end()) {
      tables_.push_back(lookup);
      ids.push_back(0);
    }
    ids[lookup.table] += op.outer;
    op = std::move(lookup);
  }
  const bool fewer = std::all_of(tables_.begin(), tables_.end(), [&](const Op& table) {
    return 2 * table.outer <= ids[table.table] * samples_;
  });
  if (!fewer) tables_.clear();
  if (tables_.empty()) return;
  fused_ = std::move(found);
  drop_unread(fused_);
  plan_arena();
}

template <typename T>
int Program<T>::pool(int x, cpu::Pool mode, int64_t channels, std::vector<int64_t> bounds,
                     std::vector<int64_t> index, std::vector<double> factor) {
  const bool sum = mode == cpu::Pool::kSum;
  require(channels > 0 && in_features(x) % channels == 0,
          "pool: input features are not pixels * channels");
  require(bounds.size() > 1 && bounds.front() == 0 &&
              bounds.back() == static_cast<int64_t>(index.size()),
          "pool: bounds do not cover the index");
  for (size_t o = 1; o < bounds.size(); ++o)
    require(bounds[o] - bounds[o - 1] >= (sum ? 0 : 1), "pool: an empty window");
  for (const int64_t i : index)
    require(i >= 0 && i < in_features(x) / channels, "pool: index out of range");
  require(factor.empty() || (sum && factor.size() + 1 == bounds.size()),
          "pool: factors are for sums, one per output");
  Op op(OpKind::kPool, {x});
  op.pool = mode, op.k = channels;
  op.output = slot((static_cast<int64_t>(bounds.size()) - 1) * channels);
  op.bounds = std::move(bounds), op.index = std::move(index), op.factor = std::move(factor);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::batch_norm_own(int x, int64_t outer, int64_t channels, double eps,
                               const int64_t* gain, const int64_t* shift,
                               const int64_t* keep_mean, const int64_t* keep_variance) {
  require(in_features(x) == outer * channels, "batch_norm: features are not outer * channels");
  require((keep_mean == nullptr) == (keep_variance == nullptr), "batch_norm: keep both or neither");
  Op op(OpKind::kBatchNorm, {x});
  op.outer = outer, op.k = channels;
  op.norm.eps = eps, op.norm.own = true;
  if (gain != nullptr) op.norm.gain = use(*gain, 1, channels);
  if (shift != nullptr) op.norm.shift = use(*shift, 1, channels);
  if (keep_mean != nullptr) {
    op.norm.keep_mean = *keep_mean, op.norm.keep_variance = *keep_variance;
    for (const int64_t at : {op.norm.keep_mean, op.norm.keep_variance})
      require(at >= 0 && at + channels <= n_, "batch_norm: kept statistics outside theta");
  }
  op.output = slot(in_features(x));
  ops_.push_back(op);
  return op.output;
}

template <typename T>
int Program<T>::matmul(int x, int y, const cpu::MatmulArgs& a, double scale) {
  require(a.outer > 0 && a.m > 0 && a.n > 0 && a.k > 0, "matmul: an operand is empty");
  const int64_t size = a.outer * a.m * a.n;
  require(within(a.x_outer, a.outer, in_features(x), a.m, a.xi, a.k, a.xk) &&
              within(a.y_outer, a.outer, in_features(y), a.k, a.yk, a.n, a.yj) &&
              within(a.z_outer, a.outer, size, a.m, a.zi, a.n, a.zj),
          "matmul: rows out of range");
  std::vector<bool> written(size, false);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t i = 0; i < a.m; ++i)
      for (int64_t j = 0; j < a.n; ++j) written[a.z_outer[o] + i * a.zi + j * a.zj] = true;
  require(std::find(written.begin(), written.end(), false) == written.end(),
          "matmul: the result's rows are not written once each");
  Op op(OpKind::kMatmul, {x, y});
  op.strides = a, op.a = scale, op.outer = a.outer;
  op.x_outer.assign(a.x_outer, a.x_outer + a.outer);
  op.y_outer.assign(a.y_outer, a.y_outer + a.outer);
  op.z_outer.assign(a.z_outer, a.z_outer + a.outer);
  op.output = slot(size);
  ops_.push_back(op);
  return op.output;
}

template <typename T>
bool Program<T>::mixes() const {
  return std::any_of(ops_.begin(), ops_.end(), [](const Op& op) { return op.norm.own; });
}

template <typename T>
std::vector<int> Program<T>::readers() const {
  std::vector<int> count(slots_.size(), 0);
  for (const Op& op : ops_)
    for (const int x : op.inputs) ++count[x];
  ++count[output_];
  return count;
}

// An op followed by relu, where nothing else reads its output, becomes one.
template <typename T>
void Program<T>::fuse_relu() {
  const std::vector<int> read = readers();
  std::vector<Op> kept;
  for (Op& op : ops_) {
    const bool relu = op.kind == OpKind::kUnary && op.unary == cpu::Unary::kRelu;
    const auto maker = std::find_if(kept.begin(), kept.end(), [&](const Op& before) {
      const bool able = before.kind == OpKind::kLinear || before.kind == OpKind::kConv ||
                        before.kind == OpKind::kBatchNorm || before.kind == OpKind::kGroupNorm ||
                        (before.kind == OpKind::kBinary && before.binary == cpu::Binary::kAdd);
      return relu && able && !before.relu && before.output == op.inputs[0];
    });
    if (maker != kept.end() && read[op.inputs[0]] == 1) {
      maker->relu = true;
      maker->output = op.output;
    } else {
      kept.push_back(std::move(op));
    }
  }
  ops_ = std::move(kept);
}

// A convolution takes in the batch norm and the sum that alone read its output.
template <typename T>
void Program<T>::fuse_epilogues() {
  const std::vector<int> read = readers();
  std::vector<int> maker(slots_.size(), -1);  // position in fused_
  fused_.clear();
  const auto open = [&](int slot) {  // the convolution that can still take something in, or null
    const int at = maker[slot];
    if (at < 0 || read[slot] != 1) return static_cast<Op*>(nullptr);
    Op& op = fused_[at];
    return op.kind == OpKind::kConv && !op.relu && op.inputs.size() == 1 ? &op : nullptr;
  };
  for (const Op& op : ops_) {
    Op* into = nullptr;
    if (op.kind == OpKind::kBatchNorm && !op.norm.own) {
      into = open(op.inputs[0]);
      if (into != nullptr && into->norm.on()) into = nullptr;
      if (into != nullptr) into->norm = op.norm;
    } else if (op.kind == OpKind::kBinary && op.binary == cpu::Binary::kAdd) {
      const int later = maker[op.inputs[0]] > maker[op.inputs[1]] ? 0 : 1;
      into = open(op.inputs[later]);
      if (into != nullptr) into->inputs.push_back(op.inputs[1 - later]);
    }
    if (into != nullptr) {
      into->relu = op.relu, into->output = op.output;
      maker[op.output] = static_cast<int>(into - fused_.data());
    } else {
      maker[op.output] = static_cast<int>(fused_.size());
      fused_.push_back(op);
    }
  }
}

// Rows of the arena for every slot, first fit over the slots alive at the same time; an op that may
// work in place writes over an input that dies with it.
template <typename T>
void Program<T>::plan_arena() {
  const int steps = static_cast<int>(fused_.size());
  std::vector<int> last(slots_.size(), -1);
  for (int i = 0; i < steps; ++i)
    for (const int x : fused_[i].inputs) last[x] = i;
  last[output_] = steps;
  place_.assign(slots_.size(), -1);
  arena_rows_ = 0;
  std::vector<int> alive;
  for (int i = 0; i < steps; ++i) {
    const Op& op = fused_[i];
    const bool in_place = op.kind == OpKind::kUnary || op.kind == OpKind::kBinary ||
                             op.kind == OpKind::kSoftmax || op.kind == OpKind::kLayerNorm;
    alive.erase(std::remove_if(alive.begin(), alive.end(),
                               [&](int s) { return in_place ? last[s] <= i : last[s] < i; }),
                alive.end());
    const auto dying = std::find_if(op.inputs.begin(), op.inputs.end(), [&](int s) {
      return in_place && last[s] == i && place_[s] >= 0;
    });
    if (dying != op.inputs.end()) {
      place_[op.output] = place_[*dying];
      // The other input of a binary op may die here as well; its rows are free from now on.
    } else {
      std::sort(alive.begin(), alive.end(), [&](int a, int b) { return place_[a] < place_[b]; });
      int64_t row = 0;
      for (const int s : alive) {
        if (row + slots_[op.output] <= place_[s]) break;
        row = std::max(row, place_[s] + slots_[s]);
      }
      place_[op.output] = row;
    }
    arena_rows_ = std::max(arena_rows_, place_[op.output] + slots_[op.output]);
    alive.push_back(op.output);
  }
}

template <typename T>
void Program<T>::finish(int output) {
  in_features(output);
  require(output_ < 0, "already finished");
  output_ = output;
  drop_unread(ops_);
  fuse_relu();
  fuse_epilogues();
  plan_arena();
}

// From shapes alone: how many samples a tile carries, and whether points are the vector lanes.
template <typename T>
void Program<T>::plan_tiles() {
  const int64_t lanes = kernels_.vector_length;
  const int64_t fit = kTileBytes / (static_cast<int64_t>(sizeof(T)) * std::max<int64_t>(1, arena_rows_));
  const int64_t most = std::clamp<int64_t>(fit / (2 * lanes) * (2 * lanes), 2 * lanes, kMaxTile);
  tile_ = 0;
  tile_first_ = {0}, batch_tile_ = {0};
  for (const int64_t size : batches_) {
    const int64_t parts = (size + most - 1) / most, even = (size + parts - 1) / parts;
    // Kernels take vectors in pairs.
    const int64_t tile = round_up(even, even > 2 * lanes ? 2 * lanes : lanes);
    const int64_t first = tile_first_.back();
    for (int64_t at = 0; at < size; at += tile)
      tile_first_.push_back(first + std::min(size, at + tile));
    batch_tile_.push_back(static_cast<int64_t>(tile_first_.size()) - 1);
    tile_ = std::max(tile_, tile);
  }
  tiles_ = batch_tile_.back();
  const bool able = std::all_of(ops_.begin(), ops_.end(), [&](const Op& op) {
    return (op.kind == OpKind::kLinear && !uses_[op.weight].transposed()) ||
           op.kind == OpKind::kUnary || op.kind == OpKind::kBinary ||
           op.kind == OpKind::kSoftmax || op.kind == OpKind::kConcat ||
           op.kind == OpKind::kMatmul || op.kind == OpKind::kPool;
  });
  const int64_t source = n_ + static_cast<int64_t>(constants_.size());
  lanes_ = able && samples_ <= 2 * lanes && source <= kMaxLaneSource && output_ != 0;
}

template <typename T>
int64_t Program<T>::tile_columns(int64_t tile) const {
  return tile_first_[tile + 1] - tile_first_[tile];
}
template <typename T>
int64_t Program<T>::most_batch_tiles() const {
  int64_t most = 0;
  for (size_t b = 0; b + 1 < batch_tile_.size(); ++b)
    most = std::max(most, batch_tile_[b + 1] - batch_tile_[b]);
  return most;
}
template <typename T>
int64_t Program<T>::padded_columns(int64_t tile) const {
  return round_up(tile_columns(tile), kernels_.vector_length);
}

template <typename T>
void Program<T>::set_batches(std::vector<int64_t> sizes) {
  for (const int64_t size : sizes) require(size > 0, "an empty batch");
  batches_ = std::move(sizes);
}

template <typename T>
void Program<T>::set_data(int64_t samples, const T* x) {
  require(output_ >= 0, "finish() comes before the data");
  require(samples > 0, "no samples");
  samples_ = samples;
  if (batches_.empty()) batches_ = {samples};
  require(std::accumulate(batches_.begin(), batches_.end(), int64_t{0}) == samples,
          "the batches are not all samples");
  fuse_lookups();
  plan_tiles();
  const int64_t features = slots_[0];
  x_ = Buffer<T>(tiles_ * features * tile_);
  for (int64_t t = 0; t < tiles_; ++t) {
    const int64_t cols = tile_columns(t), stride = padded_columns(t);
    T* dst = x_.data() + t * features * tile_;
    // Padding columns repeat the last sample: what is finite for the samples is finite there.
    for (int64_t c = 0; c < stride; ++c)
      for (int64_t f = 0; f < features; ++f)
        dst[f * stride + c] = x[(tile_first_[t] + std::min(c, cols - 1)) * features + f];
  }
  for (const Op& op : ops_) {
    if (op.kind != OpKind::kEmbedding) continue;
    for (int64_t s = 0; s < samples; ++s)
      for (const int64_t f : op.index) {
        const T id = x[s * features + f];
        require(id >= T(0) && id < static_cast<T>(op.m) && std::trunc(id) == id,
                "embedding: an id that is no row of the weight");
      }
  }
}

template <typename T>
void Program<T>::set_loss(cpu::Loss kind, int64_t classes, int64_t inner, double label_smoothing,
                          std::vector<double> weight, std::vector<double> pos_weight,
                          const int64_t* index, const double* dense, int64_t outer) {
  require(samples_ > 0, "set_data() comes before the loss");
  require((index != nullptr) != (dense != nullptr), "exactly one of index and dense targets");
  require(classes > 0 && outer * classes * inner == slots_[output_],
          "the loss's features are not the output's");
  weight_ = std::move(weight), pos_weight_ = std::move(pos_weight);
  loss_ = {kind, classes, inner, label_smoothing, weight_.empty() ? nullptr : weight_.data(),
           pos_weight_.empty() ? nullptr : pos_weight_.data(), outer};
  target_rows_ = outer * (index != nullptr ? inner : classes * inner);
  if (index != nullptr) {
    index_ = Buffer<int32_t>(tiles_ * target_rows_ * tile_);
    std::fill_n(index_.data(), index_.size(), -1);
  } else {
    dense_ = Buffer<double>(tiles_ * target_rows_ * tile_);
  }
  for (int64_t t = 0; t < tiles_; ++t) {
    const int64_t cols = tile_columns(t), stride = padded_columns(t);
    for (int64_t c = 0; c < cols; ++c)
      for (int64_t f = 0; f < target_rows_; ++f) {
        const int64_t from = (tile_first_[t] + c) * target_rows_ + f;
        const int64_t to = t * target_rows_ * tile_ + f * stride + c;
        if (index != nullptr) {
          require(index[from] >= -1 && index[from] < classes, "a class index is out of range");
          index_.data()[to] = static_cast<int32_t>(index[from]);
        } else {
          dense_.data()[to] = dense[from];
        }
      }
  }
}

template <typename T>
void Program<T>::pack(const Use& use, const T* theta, const T* constants, T* dst) const {
  const T* source = use.source >= 0 ? theta : constants;
  if (source == nullptr) {
    std::fill_n(dst, use.size(), T(0));
    return;
  }
  source += use.source >= 0 ? use.source : -1 - use.source;
  switch (use.packing) {
    case Use::Packing::kPlain: std::copy_n(source, use.size(), dst); break;
    case Use::Packing::kPanels: kernels_.pack(use.rows, use.cols, source, dst); break;
    case Use::Packing::kConv: kernels_.pack_conv(use.conv, source, dst); break;
    case Use::Packing::kTransposed:
      kernels_.pack_transposed(use.cols, use.rows, source, dst);
      break;
    case Use::Packing::kColumns:
      for (int64_t c = 0; c < use.cols; ++c)
        for (int64_t r = 0; r < use.rows; ++r) *dst++ = source[r * use.cols + c];
      break;
  }
}

template void gather_rows(const std::vector<int64_t>&, int64_t, float, const float*, float*);
template void gather_rows(const std::vector<int64_t>&, int64_t, double, const double*, double*);
template class Buffer<float>;
template class Buffer<double>;
template class Buffer<int32_t>;
template class Program<float>;
template class Program<double>;

}  // namespace pylandscape
