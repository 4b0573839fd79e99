#include "training/batches.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "program/ops/entry.h"

namespace pylandscape {
namespace {

// What stands in tiles (tiles, rows, tile), sample by sample: `each` is a tile's size there.
template <typename T, typename F>
Buffer<T> sample_rows(int64_t samples, int64_t rows, F element) {
  Buffer<T> to(samples * rows);
  for (int64_t s = 0; s < samples; ++s)
    for (int64_t f = 0; f < rows; ++f) to.data()[s * rows + f] = element(s, f);
  return to;
}

constexpr int64_t kMaxTile = 256;
constexpr int64_t kTileBytes = 256 << 10;  // of a tile's values and adjoints

template <typename V>
V* room(Buffer<V>& buffer, int64_t size) {
  if (buffer.size() < size) buffer = Buffer<V>(size);
  return buffer.data();
}

}  // namespace

int64_t widest_tile(const OpList& ops, int64_t lanes, int64_t bytes) {
  const int64_t rows = TileLayout(ops, 1, lanes).rows;
  const int64_t fit = kTileBytes / (bytes * std::max<int64_t>(1, 2 * rows));
  return std::clamp<int64_t>(fit / (2 * lanes) * (2 * lanes), 2 * lanes, kMaxTile);
}

DataColumns data_columns(const OpList& ops, const TileLayout& layout, int64_t widest,
                         int64_t lanes) {
  DataColumns found;
  for (size_t i = 0; i < ops.ops().size(); ++i) {
    const Op& op = ops.ops()[i];
    if (layout.columns_at[i] < 0 || op.inputs[0] != 0) continue;
    if (op.kind != OpKind::kLinear) return {};
    const Columns own = entry(op.kind).columns(op);
    const DataColumns::Part part{layout.data_at[i], own.count, own.k, own.first};
    found.size = std::max(found.size, part.at + own.count * round_up(own.k, 2 * lanes) * widest);
    const bool known = std::any_of(found.parts.begin(), found.parts.end(),
                                   [&](const auto& other) { return other.at == part.at; });
    if (!known) found.parts.push_back(part);
  }
  if (found.size > 4 * (ops.features(0) + 2 * lanes) * widest) return {};
  return found;
}

template <typename T>
Batches<T>::Batches(const Program<T>& p, const double* counts, int64_t widest,
                    DataColumns given)
    : samples_(p.samples_),
      features_(p.slots_[0]),
      target_rows_(p.target_rows_),
      lanes_(p.kernels_.vector_length),
      widest_(widest),
      given_(std::move(given)) {
  std::vector<int64_t> tile(samples_);
  for (int64_t t = 0; t < p.tiles_; ++t)
    std::fill(tile.begin() + p.tile_first_[t], tile.begin() + p.tile_first_[t + 1], t);
  const auto untiled = [&](const auto& from, int64_t rows) {
    return [&, rows, from = from.data()](int64_t s, int64_t f) {
      const int64_t t = tile[s];
      return from[t * rows * p.tile_ + f * p.padded_columns(t) + s - p.tile_first_[t]];
    };
  };
  x_ = sample_rows<T>(samples_, features_, untiled(p.x_, features_));
  if (p.index_.size() > 0)
    index_ = sample_rows<int32_t>(samples_, target_rows_, untiled(p.index_, target_rows_));
  if (p.dense_.size() > 0)
    dense_ = sample_rows<double>(samples_, target_rows_, untiled(p.dense_, target_rows_));
  if (counts == nullptr) return;
  counts_ = Buffer<double>(samples_);
  std::copy_n(counts, samples_, counts_.data());
}

template <typename T>
int64_t Batches<T>::tile_of(int64_t size) const {
  const int64_t parts = (size + widest_ - 1) / widest_, even = (size + parts - 1) / parts;
  return round_up(even, even > 2 * lanes_ ? 2 * lanes_ : lanes_);  // kernels take vectors in pairs
}

template <typename T>
int64_t Batches<T>::tiles(int64_t size) const {
  const int64_t tile = tile_of(size);
  return (size + tile - 1) / tile;
}

template <typename T>
int64_t Batches<T>::bytes(int64_t size) const {
  const int64_t of_targets = target_rows_ * int64_t(index_.size() > 0 ? sizeof(int32_t) : sizeof(double));
  const int64_t of_columns = given_.size / widest_ * int64_t{sizeof(T)};
  return round_up(size, 2 * lanes_) * (features_ * int64_t{sizeof(T)} + of_targets + of_columns);
}

template <typename T>
int64_t Batches<T>::columns(const Gathered<T>& b, int64_t tile) const {
  return std::min(b.tile, b.samples - tile * b.tile);
}

template <typename T>
int64_t Batches<T>::padded(const Gathered<T>& b, int64_t tile) const {
  return round_up(columns(b, tile), lanes_);
}

template <typename T>
cpu::Targets Batches<T>::targets(const Gathered<T>& b, int64_t tile) const {
  cpu::Targets found;
  const int64_t at = tile * target_rows_ * b.tile;
  if (index_.size() > 0) found.index = b.index.data() + at;
  if (dense_.size() > 0) found.dense = b.dense.data() + at;
  return found;
}

template <typename T>
double Batches<T>::denominator(int64_t size, const int64_t* samples) const {
  if (counts_.size() == 0) return 1.0;
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += counts_.data()[samples[i]];
  return sum;
}

template <typename T>
double Batches<T>::scale(double denominator, int64_t size, const int64_t* samples) const {
  if (denominator != 0) return 1 / denominator;
  for (int64_t i = 0; i < size && index_.size() > 0; ++i)
    for (int64_t r = 0; r < target_rows_; ++r)
      if (index(samples[i])[r] >= 0) return std::numeric_limits<double>::quiet_NaN();
  return 0;
}

// A transposition, in blocks of columns whose rows stay in the first-level cache.
template <typename T>
template <typename V>
void Batches<T>::gather_rows(int64_t rows, const V* from, const int64_t* samples, V* to,
                             const Gathered<T>& b, V padding, bool repeat) const {
  constexpr int64_t kBlock = 16;
  for (int64_t t = 0; t < b.tiles; ++t) {
    const int64_t cols = columns(b, t), stride = padded(b, t), first = t * b.tile;
    V* tile = to + t * rows * b.tile;
    for (int64_t c0 = 0; c0 < stride; c0 += kBlock) {
      const int64_t width = std::min(kBlock, stride - c0);
      const V* source[kBlock];
      for (int64_t c = 0; c < width; ++c)
        source[c] = from + samples[first + std::min(c0 + c, cols - 1)] * rows;
      if (width == kBlock)
        for (int64_t f = 0; f < rows; ++f)
          for (int64_t c = 0; c < kBlock; ++c) tile[f * stride + c0 + c] = source[c][f];
      else
        for (int64_t f = 0; f < rows; ++f)
          for (int64_t c = 0; c < width; ++c) tile[f * stride + c0 + c] = source[c][f];
    }
    if (repeat) continue;  // a padding column is the last sample again
    for (int64_t f = 0; f < rows; ++f)
      std::fill(tile + f * stride + cols, tile + (f + 1) * stride, padding);
  }
}

// Blocks of two vectors' rows, (cols, rows) each, the last one filled up with zeros: as the kernel
// pack_columns writes them.
template <typename T>
void Batches<T>::gather_columns(const int64_t* samples, Gathered<T>& to) const {
  if (given_.parts.empty()) return;
  T* columns_of_all = room(to.columns, to.tiles * given_.size);
  const int64_t width = 2 * lanes_;
  for (int64_t t = 0; t < to.tiles; ++t) {
    const int64_t real = columns(to, t), cols = padded(to, t);
    for (int64_t c = 0; c < cols; ++c) {
      const T* x = row(samples[t * to.tile + std::min(c, real - 1)]);
      for (const DataColumns::Part& part : given_.parts)
        for (int64_t o = 0; o < part.count; ++o) {
          T* block = columns_of_all + t * given_.size + part.at + o * round_up(part.k, width) * cols;
          const T* from = x + part.first + o * part.k;
          for (int64_t k = 0; k < part.k; k += width, block += width * cols) {
            const int64_t count = std::min(width, part.k - k);
            std::copy_n(from + k, count, block + c * width);
            std::fill_n(block + c * width + count, width - count, T(0));
          }
        }
    }
  }
}

template <typename T>
void Batches<T>::gather(int64_t size, const int64_t* samples, Gathered<T>& to) const {
  to.samples = size, to.tile = tile_of(size), to.tiles = tiles(size);
  to.denominator = denominator(size, samples);
  to.scale = scale(to.denominator, size, samples);
  const int64_t columns = to.tiles * to.tile;
  gather_rows(features_, x_.data(), samples, room(to.x, columns * features_), to, T(0), true);
  gather_columns(samples, to);
  if (index_.size() > 0)
    gather_rows(target_rows_, index_.data(), samples, room(to.index, columns * target_rows_), to,
                int32_t{-1}, false);
  if (dense_.size() > 0)
    gather_rows(target_rows_, dense_.data(), samples, room(to.dense, columns * target_rows_), to,
                0.0, false);
}

template class Batches<float>;
template class Batches<double>;

}  // namespace pylandscape
