// The data and the targets of a Program, in tiles of samples.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "program/ops/entry.h"
#include "program/program.h"

namespace pylandscape {
namespace {

constexpr int64_t kTileBytes = 256 * 1024;  // what a tile's live values may take: half of L2
constexpr int64_t kMaxTile = 256;
constexpr int64_t kTiles = 4;  // of few samples of large networks, so that threads share them
constexpr int64_t kLine = 64;  // bytes of a line of the cache
constexpr int64_t kMaxLaneSource = 4096;  // parameters up to which point lanes are used

}  // namespace

// From shapes alone: how many samples a tile carries, and whether points are the vector lanes.
template <typename T>
void Program<T>::plan_tiles() {
  const int64_t lanes = kernels_.vector_length;
  const int64_t fit = kTileBytes / (static_cast<int64_t>(sizeof(T)) * std::max<int64_t>(1, live_rows_));
  const int64_t most = std::clamp<int64_t>(fit / (2 * lanes) * (2 * lanes), 2 * lanes, kMaxTile);
  // Few samples of large networks: single vectors instead of pairs, which the kernels are made for,
  // where they fill a line of the cache, or where threads could not share a tile.
  const bool single = fit < 2 * lanes && (lanes * int64_t{sizeof(T)} >= kLine || !divisible());
  tile_ = 0;
  tile_first_ = {0}, batch_tile_ = {0};
  for (const int64_t size : batches_) {
    const int64_t wanted = single ? std::min(kTiles, (size + lanes - 1) / lanes) : 1;
    const int64_t parts = std::max(wanted, (size + most - 1) / most);
    const int64_t even = (size + parts - 1) / parts;
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
    const bool transposed = op.weight >= 0 && uses_[op.weight].transposed();
    return entry(op.kind).point_lanes && !transposed;
  });
  const int64_t source = n_ + static_cast<int64_t>(constants_.size());
  // A vector of points takes all samples at once: their values must fit where a tile's do.
  const int64_t values = live_rows_ * samples_ * lanes * static_cast<int64_t>(sizeof(T));
  lanes_ = able && samples_ <= 2 * lanes && source <= kMaxLaneSource && output_ != 0 &&
           values <= kTileBytes;
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
  fuse_lookups(samples_, kernels_.vector_length);
  plan_tiles();
  const int64_t features = slots_[0];
  x_ = Buffer<T>(tiles_ * features * tile_);
  for (int64_t t = 0; t < tiles_; ++t) {
    const int64_t cols = tile_columns(t), stride = padded_columns(t);
    T* dst = x_.data() + t * features * tile_;
    // Padding columns repeat the last sample: what is finite for the samples is finite there. A line
    // of the cache of each sample at a time, so that the rows that are written stay in the cache.
    constexpr int64_t kElements = kLine / sizeof(T);
    for (int64_t from = 0; from < features; from += kElements) {
      const int64_t end = std::min(from + kElements, features);
      for (int64_t c = 0; c < stride; ++c) {
        const T* sample = x + (tile_first_[t] + std::min(c, cols - 1)) * features;
        for (int64_t f = from; f < end; ++f) dst[f * stride + c] = sample[f];
      }
    }
  }
  for (const Op& op : ops_)
    if (const auto check = passes<T>(op.kind).check_data) check(op, samples, features, x);
}

template <typename T>
void Program<T>::set_loss(cpu::Loss kind, int64_t classes, int64_t inner, double label_smoothing,
                          std::vector<double> weight, std::vector<double> pos_weight,
                          const int64_t* index, const double* dense, int64_t outer, double a,
                          double b) {
  require(samples_ > 0, "set_data() comes before the loss");
  require((index != nullptr) != (dense != nullptr), "exactly one of index and dense targets");
  require(classes > 0 && outer * classes * inner == slots_[output_],
          "the loss's features are not the output's");
  weight_ = std::move(weight), pos_weight_ = std::move(pos_weight);
  loss_ = {kind, classes, inner, label_smoothing, weight_.empty() ? nullptr : weight_.data(),
           pos_weight_.empty() ? nullptr : pos_weight_.data(), outer, a, b};
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
cpu::Targets Program<T>::targets(int64_t tile) const {
  const int64_t at = tile * target_rows_ * tile_;
  cpu::Targets found;
  if (index_.size() > 0) found.index = index_.data() + at;
  if (dense_.size() > 0) found.dense = dense_.data() + at;
  return found;
}

template class Program<float>;
template class Program<double>;

}  // namespace pylandscape
