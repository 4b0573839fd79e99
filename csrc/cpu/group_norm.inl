// Group norm, forward. Only included by kernels.inl. Derivatives are those of layer norm
// (reverse.inl), over other rows.
//
// Rows run through (pixel, group, channel of the group). Neighbouring groups are taken together, so
// that every pass reads the pixels one after the other in long runs.
namespace pylandscape::cpu {
namespace {

constexpr int64_t kNormColumns = 1024;  // groups times columns taken together
constexpr int64_t kNormBlock = 16;     // rows summed in T before they join the double sum

// Some neighbouring groups in some neighbouring columns.
struct NormPiece {
  int64_t pixels, step, groups, width, cols, count;  // step: rows from pixel to pixel

  // f(element of the sums, first row's offset) for every vector of every group at pixel p.
  template <typename T, typename F>
  void each(int64_t p, F f) const {
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t c = 0; c < count; c += kLanes<T>)
        f(g * count + c, (p * step + g * width) * cols + c);
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

// y = (x - mean) / sqrt(variance + eps) * gain + shift. Around a first mean m that is good to
// rounding, d = x - m is exact where x is near it; then mean(d) and variance are small corrections
// and a sum without cancellation. gain and shift: those of the piece.
template <typename T>
void group_norm_piece(const NormPiece& a, double eps, const T* gain, const T* shift, bool relu,
                      const T* x, T* y) {
  constexpr int N = kLanes<T>;
  alignas(64) double sums[kNormColumns], squares[kNormColumns];
  alignas(64) T first[kNormColumns], scale[kNormColumns], centre[kNormColumns];
  const int64_t size = a.groups * a.count;
  const double share = 1.0 / double(a.pixels * a.width);
  for (int64_t i = 0; i < size; ++i) sums[i] = 0;
  for (int64_t p = 0; p < a.pixels; ++p)
    a.each<T>(p, [&](int64_t i, int64_t at) {
      for (int64_t w = 0; w < a.width; w += kNormBlock) {
        const int64_t end = w + kNormBlock < a.width ? w + kNormBlock : a.width;
        Vec<T> sum{};
        for (int64_t r = w; r < end; ++r) sum += load<T, N>(x + at + r * a.cols);
        add_wide<T>(sums + i, sum);
      }
    });
  for (int64_t i = 0; i < size; ++i) {
    first[i] = static_cast<T>(sums[i] * share);
    sums[i] = squares[i] = 0;
  }
  for (int64_t p = 0; p < a.pixels; ++p)
    a.each<T>(p, [&](int64_t i, int64_t at) {
      const Vec<T> m = load<T, N>(first + i);
      for (int64_t w = 0; w < a.width; w += kNormBlock) {
        const int64_t end = w + kNormBlock < a.width ? w + kNormBlock : a.width;
        Vec<T> sum{}, square{};
        for (int64_t r = w; r < end; ++r) {
          const Vec<T> d = load<T, N>(x + at + r * a.cols) - m;
          sum += d;
          square += d * d;
        }
        add_wide<T>(sums + i, sum);
        add_wide<T>(squares + i, square);
      }
    });
  for (int64_t i = 0; i < size; ++i) {
    const double mean = sums[i] * share, variance = squares[i] * share - mean * mean;
    const double inverse = 1.0 / __builtin_sqrt(variance + eps);
    scale[i] = static_cast<T>(inverse), centre[i] = static_cast<T>(-mean * inverse);
  }
  for (int64_t p = 0; p < a.pixels; ++p)
    a.each<T>(p, [&](int64_t i, int64_t at) {
      const Vec<T> m = load<T, N>(first + i), s = load<T, N>(scale + i);
      const Vec<T> b = load<T, N>(centre + i);
      const int64_t channel = i / a.count * a.width;
      for (int64_t r = 0; r < a.width; ++r) {
        Vec<T> v = (load<T, N>(x + at + r * a.cols) - m) * s + b;
        if (gain != nullptr) v *= gain[channel + r];
        if (shift != nullptr) v += shift[channel + r];
        store<T, N>(y + at + r * a.cols, relu ? vmax(v, Vec<T>{}) : v);
      }
    });
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
