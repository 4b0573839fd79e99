// dropout: in training, rows are zero or divided by what is left of the rate; elsewhere as they are.
//
// A sample's row is dropped where a standard normal number lies below the rate's quantile: number
// sample * k + index[row] of the stream (kind, dropout, step) of the run's seed, as
// pylandscape/engines/dropout.py draws it too. The mask is kept as f' of a unary op is.
#include <algorithm>
#include <vector>

#include "cpu/directions.h"
#include "program/ops/entry.h"

namespace pylandscape {

namespace {

constexpr uint64_t kKind = 0x19;  // of the streams, see pylandscape/theta/random_source.py
constexpr int64_t kMost = 1 << 16;  // dropouts of a network

}  // namespace

int OpList::dropout(int x, double rate, double below, int64_t number, int64_t count,
                    std::vector<int64_t> index) {
  require(rate >= 0 && rate <= 1, "dropout: the rate is no probability");
  require(number >= 0 && number < kMost, "dropout: too many of them");
  require(static_cast<int64_t>(index.size()) == in_features(x), "dropout: one index for each row");
  for (const int64_t i : index) require(i >= 0 && i < count, "dropout: index out of range");
  Op op(OpKind::kDropout, {x});
  op.a = rate, op.b = below, op.inner = number, op.k = count, op.index = std::move(index);
  return add(std::move(op), in_features(x));
}

namespace {

// (rows, cols): 0 or 1 / (1 - rate).
template <typename T>
void draw_mask(const Pass<T>& p, T* mask) {
  constexpr int64_t kTogether = 16;  // columns
  const Op& op = p.op;
  const Draw& draw = *p.draw;
  const auto below = static_cast<float>(op.b);
  const T kept = op.a < 1 ? static_cast<T>(1 / (1 - op.a)) : T(0);
  const uint64_t stream = kKind << 56 | static_cast<uint64_t>(op.inner) << 40 | draw.step;
  std::vector<float> numbers(kTogether * op.k);
  for (int64_t c = 0; c < p.cols; c += kTogether) {
    const int64_t count = std::min(kTogether, p.cols - c);
    for (int64_t i = 0; i < count; ++i) {  // a padding column is the last sample again
      const int64_t sample = draw.first + std::min(c + i, p.samples - 1);
      cpu::direction_kernels<float>().draw(draw.seed, stream, sample * op.k, op.k,
                                           numbers.data() + i * op.k, nullptr);
    }
    for (int64_t r = 0; r < p.rows(); ++r)
      for (int64_t i = 0; i < count; ++i)
        mask[r * p.cols + c + i] = numbers[i * op.k + op.index[r]] < below ? T(0) : kept;
  }
}

struct Dropout : Rules<Dropout> {
  static constexpr const char* no_points = "dropout";
  static constexpr bool in_place = true, curves = true;

  template <typename T>
  static void call(const Call<T>& c) {
    if (c.y != c.x()) std::copy_n(c.x(), c.size(), c.y);
  }

  template <typename T>
  static void forward(const Forward<T>& p) {
    const T* x = p.slots[p.op.inputs[0]];
    const bool moves = p.layout.moves[p.op.output];
    T* mask = moves ? p.bent(p.to.first) : p.out;
    if (moves) std::fill_n(p.bent(p.to.curved), p.size(), T(0));
    if (p.draw != nullptr)
      draw_mask(p, mask);
    else
      std::fill_n(mask, p.size(), T(1));
    p.kernels.binary(cpu::Binary::kMul, p.size(), x, mask, p.out);
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    p.kernels.product_add(p.size(), T(1), p.first(), p.dy, p.dx);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {
    p.kernels.binary(cpu::Binary::kMul, p.size(), p.first(), p.rx, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    p.kernels.product_add(p.size(), T(1), p.first(), p.rdy, p.rdx);
  }
};

}  // namespace

const OpEntry ops::dropout = make_entry<Dropout>();

}  // namespace pylandscape
