// Group norm, forward. Only included by kernels.inl. Derivatives are those of layer norm
// (reverse.inl), over other rows.
//
// Rows run through (pixel, group, channel of the group). Neighbouring groups are taken together, so
// that every pass reads the pixels one after the other in long runs.
namespace pylandscape::cpu {
namespace {

constexpr int64_t kNormColumns = 1024;  // groups times columns taken together at most
constexpr int64_t kNormBlock = 16;     // rows summed in T before they join the double sum

// Some neighbouring groups in some neighbouring columns. Sums go over blocks of rows: up to
// kNormBlock rows of one pixel, or, where a group has few channels, those of several pixels.
struct NormPiece {
  int64_t pixels, step, groups, width, cols, count;  // step: rows from pixel to pixel

  int64_t size() const { return groups * count; }
  // f(group, first pixel, pixel behind the last, first row, row behind the last) for every block.
  template <typename F>
  void each_block(int64_t group, int64_t from, int64_t w, F f) const {
    const int64_t to = from + together() < pixels ? from + together() : pixels;
    f(group, from, to, w, w + kNormBlock < width ? w + kNormBlock : width);
  }
  template <typename F>
  void blocks(F f) const {
    for (int64_t p = 0; p < pixels; p += together())
      for (int64_t w = 0; w < width; w += kNormBlock)
        for (int64_t g = 0; g < groups; ++g) each_block(g, p, w, f);
  }
  int64_t together() const { return width < kNormBlock ? kNormBlock / width : 1; }
  // Offset of row w of a group at a pixel.
  int64_t at(int64_t group, int64_t pixel, int64_t w) const {
    return (pixel * step + group * width + w) * cols;
  }
};

template <typename T>
inline void add_wide(double* sums, Vec<T> v) {
  constexpr int N = kLanes<T>, D = kLanes<double>;
  alignas(64) T out[N];
  store<T, N>(out, v);
#pragma GCC unroll 8
  for (int j = 0; j < N; j += D)
    store<double, D>(sums + j, load<double, D>(sums + j) + load_double<T, D>(out + j));
}

// z = (x - first) * scale + centre, for every column of every group of a piece. Around a first mean
// that is good to rounding, d = x - first is exact where x is near it; then mean(d) and variance are
// small corrections and a sum without cancellation.
template <typename T>
struct NormColumns {
  static constexpr int N = kLanes<T>;
  alignas(64) T first[kNormColumns], scale[kNormColumns], centre[kNormColumns];

  NormColumns(const NormPiece& a, double eps, const T* x) {
    alignas(64) double sums[kNormColumns], squares[kNormColumns];
    const int64_t size = a.size();
    const double share = 1.0 / double(a.pixels * a.width);
    for (int64_t i = 0; i < size; ++i) sums[i] = 0;
    a.blocks([&](int64_t g, int64_t from, int64_t to, int64_t w, int64_t end) {
      for (int64_t c = 0; c < a.count; c += N) {
        Vec<T> sum{};
        for (int64_t p = from; p < to; ++p) {
          const T* row = x + a.at(g, p, w) + c;
          for (int64_t r = w; r < end; ++r, row += a.cols) sum += load<T, N>(row);
        }
        add_wide<T>(sums + g * a.count + c, sum);
      }
    });
    for (int64_t i = 0; i < size; ++i) {
      first[i] = static_cast<T>(sums[i] * share);
      sums[i] = squares[i] = 0;
    }
    a.blocks([&](int64_t g, int64_t from, int64_t to, int64_t w, int64_t end) {
      for (int64_t c = 0; c < a.count; c += N) {
        const Vec<T> m = load<T, N>(first + g * a.count + c);
        Vec<T> sum{}, square{};
        for (int64_t p = from; p < to; ++p) {
          const T* row = x + a.at(g, p, w) + c;
          for (int64_t r = w; r < end; ++r, row += a.cols) {
            const Vec<T> d = load<T, N>(row) - m;
            sum += d, square += d * d;
          }
        }
        add_wide<T>(sums + g * a.count + c, sum);
        add_wide<T>(squares + g * a.count + c, square);
      }
    });
    for (int64_t i = 0; i < size; ++i) {
      const double mean = sums[i] * share, variance = squares[i] * share - mean * mean;
      const double inverse = 1.0 / __builtin_sqrt(variance + eps);
      scale[i] = static_cast<T>(inverse), centre[i] = static_cast<T>(-mean * inverse);
    }
  }
};

// y = z * gain + shift, of one piece, whose gain and shift these are.
template <typename T>
void group_norm_piece(const NormPiece& a, double eps, const T* gain, const T* shift, bool relu,
                      const T* x, T* y) {
  constexpr int N = kLanes<T>;
  const NormColumns<T> columns(a, eps, x);
  for (int64_t p = 0; p < a.pixels; ++p)
    for (int64_t g = 0; g < a.groups; ++g)
      for (int64_t c = 0; c < a.count; c += N) {
        const int64_t i = g * a.count + c, at = a.at(g, p, 0) + c;
        const Vec<T> m = load<T, N>(columns.first + i), s = load<T, N>(columns.scale + i);
        const Vec<T> b = load<T, N>(columns.centre + i);
        for (int64_t r = 0; r < a.width; ++r) {
          Vec<T> v = (load<T, N>(x + at + r * a.cols) - m) * s + b;
          if (gain != nullptr) v *= gain[g * a.width + r];
          if (shift != nullptr) v += shift[g * a.width + r];
          store<T, N>(y + at + r * a.cols, relu ? vmax(v, Vec<T>{}) : v);
        }
      }
}

template <typename T>
void group_norm(const NormArgs& a, int64_t cols, const T* gain, const T* shift, bool relu,
                const T* x, T* y) {
  const int64_t width = a.size / a.pixels;
  const int64_t most = cols < kNormColumns ? cols : kNormColumns, together = kNormColumns / most;
  for (int64_t g = 0; g < a.outer; g += together)
    for (int64_t c = 0; c < cols; c += most) {
      const int64_t groups = a.outer - g < together ? a.outer - g : together;
      const int64_t count = cols - c < most ? cols - c : most;
      const NormPiece piece{a.pixels, a.outer * width, groups, width, cols, count};
      const int64_t channel = g * width, at = channel * cols + c;
      group_norm_piece(piece, a.eps, gain != nullptr ? gain + channel : nullptr,
                       shift != nullptr ? shift + channel : nullptr, relu, x + at, y + at);
    }
}

}  // namespace
}  // namespace pylandscape::cpu
