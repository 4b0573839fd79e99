#include "program/directions.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/draw.h"
#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kChunk = 1 << 15;  // elements: direction and theta of a chunk fit L2
constexpr double kTiny = 1e-10;      // Li et al.: |theta| / (|d| + 1e-10)

struct Piece {  // a whole segment, or a chunk of a large one
  int64_t begin, end, segment;
  bool whole;
};

void check(int64_t n, const int64_t* segments, int64_t count) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = segments[2 * i], end = segments[2 * i + 1];
    if (begin < last || end < begin || end > n)
      throw std::invalid_argument("segments: expected increasing ranges within 0 .. " +
                                  std::to_string(n) + ", got [" + std::to_string(begin) + ", " +
                                  std::to_string(end) + ") at " + std::to_string(i));
    last = end;
  }
}

template <typename T>
T factor(Target target, double d2, double theta2) {
  if (d2 == 0.0) return T(0);
  return static_cast<T>((target == Target::kUnit ? 1.0 : std::sqrt(theta2)) /
                        (std::sqrt(d2) + kTiny));
}

template <typename T>
class Maker {
 public:
  explicit Maker(const DirectionArgs<T>& args) : a_(args), kernels_(cpu::kernels<T>()) {}

  // Zeroes between the segments belong to the segment that follows.
  void fill_gap(int64_t segment) const {
    const int64_t from = segment == 0 ? 0 : a_.segments[2 * segment - 1];
    const int64_t to = segment < a_.count ? a_.segments[2 * segment] : a_.n;
    std::fill(a_.out + from, a_.out + to, T(0));
  }

  // The raw values of a range: the given direction, or draws written to out.
  const T* raw(int64_t begin, int64_t end) const {
    if (a_.direction != nullptr) return a_.direction + begin;
    const auto draw = cpu::draw_kernels().gaussian;
    if constexpr (sizeof(T) == sizeof(float)) {
      draw(a_.seed, a_.stream, begin, end - begin, a_.out + begin);
    } else {
      float some[1024];
      for (int64_t i = begin; i < end; i += 1024) {
        const int64_t count = std::min<int64_t>(1024, end - i);
        draw(a_.seed, a_.stream, i, count, some);
        std::copy_n(some, count, a_.out + i);
      }
    }
    return a_.out + begin;
  }

  void measure(const Piece& piece, double* sums) const {
    const T* d = raw(piece.begin, piece.end);
    kernels_.squares(piece.end - piece.begin, d, a_.theta + piece.begin, sums);
  }

  void scale(const Piece& piece, const double* sums) const {
    const int64_t n = piece.end - piece.begin;
    const T* d = (a_.direction != nullptr ? a_.direction : a_.out) + piece.begin;
    kernels_.scale(n, factor<T>(a_.target, sums[0], sums[1]), d, a_.out + piece.begin);
  }

  void without_norm(const Piece& piece) const {
    const int64_t n = piece.end - piece.begin;
    const T* d = raw(piece.begin, piece.end);
    T* out = a_.out + piece.begin;
    if (a_.target == Target::kElementwise)
      kernels_.binary(cpu::Binary::kMul, n, d, a_.theta + piece.begin, out);
    else if (d != out)
      std::copy_n(d, n, out);
  }

 private:
  const DirectionArgs<T>& a_;
  const cpu::Kernels<T>& kernels_;
};

}  // namespace

template <typename T>
void make_direction(const DirectionArgs<T>& args, const Parallel& parallel) {
  check(args.n, args.segments, args.count);
  const Maker<T> maker(args);
  std::vector<Piece> pieces;
  for (int64_t s = 0; s < args.count; ++s) {
    const int64_t begin = args.segments[2 * s], end = args.segments[2 * s + 1];
    const int64_t chunks = std::max<int64_t>(1, (end - begin + kChunk - 1) / kChunk);
    for (int64_t c = 0; c < chunks; ++c)
      pieces.push_back({begin + c * kChunk, std::min(end, begin + (c + 1) * kChunk), s,
                        chunks == 1 && !args.joint});
  }
  // Work items are runs of pieces of about kChunk elements.
  std::vector<size_t> runs{0};
  int64_t size = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    size += pieces[i].end - pieces[i].begin;
    if (size >= kChunk || i + 1 == pieces.size()) runs.push_back(i + 1), size = 0;
  }
  const auto every = [&](const auto& body) {
    Items(static_cast<int64_t>(runs.size()) - 1, parallel, {}).run([&](int, int64_t run) {
      for (size_t i = runs[run]; i < runs[run + 1]; ++i) body(i);
    });
  };
  const bool norms = args.target == Target::kTheta || args.target == Target::kUnit;
  std::vector<double> sums(2 * pieces.size());
  bool rest = false;  // pieces whose norm is known only after the first sweep
  for (const Piece& piece : pieces) rest = rest || !piece.whole;
  every([&](size_t i) {
    const Piece& piece = pieces[i];
    if (i == 0 || pieces[i - 1].segment != piece.segment) maker.fill_gap(piece.segment);
    if (!norms) return maker.without_norm(piece);
    maker.measure(piece, &sums[2 * i]);
    if (piece.whole) maker.scale(piece, &sums[2 * i]);
  });
  maker.fill_gap(args.count);
  if (!norms || !rest) return;
  // Sums over the pieces of a segment (or of all of them), in order.
  std::vector<double> totals(2 * std::max<int64_t>(1, args.count));
  for (size_t i = 0; i < pieces.size(); ++i) {
    const int64_t owner = args.joint ? 0 : pieces[i].segment;
    totals[2 * owner] += sums[2 * i];
    totals[2 * owner + 1] += sums[2 * i + 1];
  }
  every([&](size_t i) {
    if (!pieces[i].whole) maker.scale(pieces[i], &totals[args.joint ? 0 : 2 * pieces[i].segment]);
  });
}

template void make_direction(const DirectionArgs<float>&, const Parallel&);
template void make_direction(const DirectionArgs<double>&, const Parallel&);

}  // namespace pylandscape
