// Mini-batches of a Program's data: which samples, gathered into tiles as the kernels want them.
#pragma once
#include <vector>

#include "derivatives/tile_layout.h"
#include "program/program.h"

namespace pylandscape {

// Of step t: `size` sample indices, or, where `own`, (runs, size): every run has its order.
struct Indices {
  int64_t size;
  const int64_t* samples;
  bool own;
  const int64_t* of(int64_t run) const { return own ? samples + run * size : samples; }
};

// One gathered mini-batch; buffers grow to the largest and are used again.
template <typename T>
struct Gathered {
  int64_t samples = 0, tiles = 0, tile = 0;
  double denominator = 1, scale = 1;  // see Batches
  Buffer<T> x;             // (tiles, features, tile)
  Buffer<T> columns;       // of each tile, see DataColumns
  Buffer<int32_t> index;   // (tiles, target rows, tile), -1 where a target does not count
  Buffer<double> dense;
};

// How linear ops want the data that they multiply by (Columns): packed with the gathering, from rows
// that are contiguous, instead of by every run.
struct DataColumns {
  struct Part {
    int64_t at, count, k, first;
  };
  std::vector<Part> parts;
  int64_t size = 0;  // elements of a tile
};

// Columns of a tile at most, whose values and adjoints stay in cache.
int64_t widest_tile(const OpList& ops, int64_t lanes, int64_t bytes);

// Where every op that multiplies by the data is linear, and not much else is packed beside.
DataColumns data_columns(const OpList& ops, const TileLayout& layout, int64_t widest,
                         int64_t lanes);

template <typename T>
class Batches {
 public:
  // counts (samples,): what a sample adds to its mini-batch's denominator; null: that is 1.
  // widest: columns of a tile at most. given: what is packed besides.
  Batches(const Program<T>& program, const double* counts, int64_t widest,
          DataColumns given = {});

  int64_t tiles(int64_t size) const;
  int64_t bytes(int64_t size) const;  // of a gathered batch, roughly
  void gather(int64_t size, const int64_t* samples, Gathered<T>& to) const;

  int64_t columns(const Gathered<T>& b, int64_t tile) const;  // that carry samples
  int64_t padded(const Gathered<T>& b, int64_t tile) const;
  const T* data(const Gathered<T>& b, int64_t tile) const {
    return b.x.data() + tile * features_ * b.tile;
  }
  const T* columns_of(const Gathered<T>& b, int64_t tile) const {
    return given_.parts.empty() ? nullptr : b.columns.data() + tile * given_.size;
  }
  cpu::Targets targets(const Gathered<T>& b, int64_t tile) const;

  // Row-major: of one sample.
  const T* row(int64_t sample) const { return x_.data() + sample * features_; }
  const int32_t* index(int64_t sample) const {
    return index_.size() > 0 ? index_.data() + sample * target_rows_ : nullptr;
  }
  const double* dense(int64_t sample) const {
    return dense_.size() > 0 ? dense_.data() + sample * target_rows_ : nullptr;
  }
  double denominator(int64_t size, const int64_t* samples) const;
  // What sums of gradients are multiplied by: 1 / denominator. As in torch, where that is 0: 0
  // where no target counts, NaN where those that count have the weight 0.
  double scale(double denominator, int64_t size, const int64_t* samples) const;
  int64_t features() const { return features_; }
  int64_t target_rows() const { return target_rows_; }
  int64_t samples() const { return samples_; }

 private:
  int64_t tile_of(int64_t size) const;
  template <typename V>
  void gather_rows(int64_t rows, const V* from, const int64_t* samples, V* to,
                   const Gathered<T>& b, V padding, bool repeat) const;
  void gather_columns(const int64_t* samples, Gathered<T>& to) const;

  int64_t samples_, features_, target_rows_, lanes_, widest_;
  DataColumns given_;
  Buffer<T> x_;  // (samples, features)
  Buffer<int32_t> index_;
  Buffer<double> dense_, counts_;
};

}  // namespace pylandscape
