// embedding: rows of a weight (m, k), by ids that are in the data; row b has no derivative.
#include <cmath>

#include "program/ops/entry.h"
#include "program/ops/look_up.h"

namespace pylandscape {

int OpList::embedding(std::vector<int64_t> rows, int64_t count, int64_t size, int64_t padding,
                          int64_t weight) {
  require(count > 0 && size > 0, "embedding: sizes must be positive");
  require(padding >= -1 && padding < count, "embedding: padding is no row");
  for (const int64_t r : rows)
    require(r >= 0 && r < in_features(0), "embedding: a row of the data that is not there");
  Op op(OpKind::kEmbedding, {0});
  op.m = count, op.k = size, op.b = static_cast<double>(padding);
  op.weight = use(weight, count, size);
  op.index = std::move(rows);
  return add(std::move(op), static_cast<int64_t>(op.index.size()) * size);
}

namespace {

struct Embedding : Rules<Embedding> {
  static constexpr const char* no_points = "embeddings";
  template <typename T>
  static void call(const Call<T>& c) {
    look_up(c.op, c.op.k, c.cols, c.kernels, -1, c.at.weight, c.x(), c.y);
  }

  template <typename T>
  static void check_data(const Op& op, int64_t samples, int64_t features, const T* x) {
    for (int64_t s = 0; s < samples; ++s)
      for (const int64_t f : op.index) {
        const T id = x[s * features + f];
        OpList::require(id >= T(0) && id < static_cast<T>(op.m) && std::trunc(id) == id,
                        "embedding: an id that is no row of the weight");
      }
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    add_to_table(p, p.dy, p.dw);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    look_up(p.op, p.op.k, p.cols, p.kernels, padding(p.op), p.rw, p.data, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    add_to_table(p, p.rdy, p.rdw);
  }

  static int64_t padding(const Op& op) { return static_cast<int64_t>(op.b); }

  // The table's rows += those of dy, but for the padding.
  template <typename T>
  static void add_to_table(const Pass<T>& p, const T* dy, double* dw) {
    for (size_t i = 0; dw != nullptr && i < p.op.index.size(); ++i, dy += p.op.k * p.cols)
      p.kernels.embedding_add(p.op.k, p.cols, p.samples, padding(p.op),
                              p.data + p.op.index[i] * p.cols, dy, dw);
  }

  template <typename T>
  static void sample_gradients(const SampleGradients<T>& p) {
    const int64_t weight = p.offset(p.op.weight), k = p.op.k;
    for (int64_t c = 0; weight >= 0 && c < p.samples; ++c)
      for (size_t i = 0; i < p.op.index.size(); ++i) {
        const int64_t id = static_cast<int64_t>(p.data[p.op.index[i] * p.cols + c]);
        if (id == padding(p.op)) continue;
        for (int64_t f = 0; f < k; ++f)
          p.row(c)[weight + id * k + f] += p.dy[(static_cast<int64_t>(i) * k + f) * p.cols + c];
      }
  }
};

}  // namespace

const OpEntry ops::embedding = make_entry<Embedding>();

}  // namespace pylandscape
