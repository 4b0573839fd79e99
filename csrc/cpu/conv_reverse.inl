// Derivatives of convolutions and of batch norm. Only included by kernels.inl.
namespace pylandscape::cpu {
namespace {

// Panels of every group's transposed weights, each (taps, rows of dy, channels).
template <typename T>
void pack_conv_transposed(const ConvArgs& a, const T* src, T* dst) {
  const int64_t taps = a.kernel_h * a.kernel_w;
  const PanelSplit split(a.channels, kRows);
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t p = 0; p < split.panels; ++p) {
      const int64_t rows = split.rows(p), first = split.first(p);
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t m = 0; m < a.rows; ++m)
          for (int64_t r = 0; r < rows; ++r)
            *dst++ = src[((g * a.rows + m) * a.channels + first + r) * taps + t];
    }
}

// Of one dimension: the taps through which input `i` reaches outputs: `count` of them, from
// `first` in steps of `step`; the first reaches output `out`, each further one `back` less.
struct BackTaps {
  int64_t first = 0, count = 0, step = 1, out = 0, back = 0;
  BackTaps(int64_t i, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel,
           int64_t outputs) {
    for (int64_t t = 0; t < kernel; ++t) {
      const int64_t from = i + pad - t * dilation;
      if (from < 0 || from % stride != 0 || from / stride >= outputs) continue;
      if (count == 0) first = t, out = from / stride;
      if (count == 1) step = t - first, back = out - from / stride;
      ++count;
    }
  }
};

// Rows [first, last) of the input's pixels.
template <typename T, int Rows>
inline void conv_reverse_panel(const ConvArgs& a, int64_t group, int64_t rows, int64_t row,
                               int64_t first, int64_t last, int64_t cols, const T* w, const T* dy,
                               T* dx) {
  if constexpr (Rows > 0) {
    if (rows != Rows)
      return conv_reverse_panel<T, Rows - 1>(a, group, rows, row, first, last, cols, w, dy, dx);
    constexpr int N = kLanes<T>, V = vectors_for(Rows) < 2 ? 1 : 2;
    const int64_t channels = a.groups * a.channels, features = a.groups * a.rows;
    const Epilogue<T> add{nullptr, nullptr, dx, false};
    for (int64_t ih = first; ih < last; ++ih) {
      const BackTaps th(ih, a.stride_h, a.pad_h, a.dilation_h, a.kernel_h, a.out_h);
      for (int64_t iw = 0; iw < a.in_w; ++iw) {
        const BackTaps tw(iw, a.stride_w, a.pad_w, a.dilation_w, a.kernel_w, a.out_w);
        if (th.count == 0 || tw.count == 0) continue;
        Runs runs;
        runs.n1 = th.count, runs.n2 = tw.count, runs.k = a.rows;
        runs.x1 = -th.back * a.out_w * features, runs.w1 = th.step * a.kernel_w * a.rows;
        runs.x2 = -tw.back * features, runs.w2 = tw.step * a.rows;
        const T* from = dy + ((th.out * a.out_w + tw.out) * features + group * a.rows) * cols;
        const T* weights = w + (th.first * a.kernel_w + tw.first) * a.rows * Rows;
        const int64_t at = ((ih * a.in_w + iw) * channels + row) * cols;
        int64_t c = 0;
        for (; c + V * N <= cols; c += V * N)
          conv_micro<T, Rows, V>(runs, cols, weights, from + c, add, row, at + c, dx);
        for (; c < cols; c += N)
          conv_micro<T, Rows, 1>(runs, cols, weights, from + c, add, row, at + c, dx);
      }
    }
  }
}

template <typename T>
void conv_reverse(const ConvArgs& a, int64_t cols, const T* packed, const T* dy, T* dx) {
  if (is_depthwise(a)) return depthwise_reverse(a, cols, packed, dy, dx);
  const int64_t depth = a.rows * a.kernel_h * a.kernel_w;
  const PanelSplit split(a.channels, kRows);
  const int64_t strip = a.stride_h * conv_strip<T>(a.out_w * a.rows * cols);
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t h = 0; h < a.in_h; h += strip)
      for (int64_t p = 0; p < split.panels; ++p) {
        const int64_t row = g * a.channels + split.first(p);
        const int64_t last = a.in_h - h < strip ? a.in_h : h + strip;
        conv_reverse_panel<T, kRows>(a, g, split.rows(p), row, h, last, cols, packed + row * depth,
                                     dy, dx);
      }
}

// N elements each of N rows (null: zeros) become N vectors one after the other.
template <typename T>
inline void transpose_rows(const T* const* rows, int64_t at, T* dst) {
  constexpr int N = kLanes<T>;
  Vec<T> block[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) block[i] = rows[i] != nullptr ? load<T, N>(rows[i] + at) : Vec<T>{};
  transpose<T>(block);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) store<T, N>(dst + i * N, block[i]);
}

// Blocks of N rows of every pixel, each (cols, N), the last one filled up with zeros.
template <typename T>
void pack_pixels(const ConvArgs& a, int64_t cols, const T* x, T* dst) {
  constexpr int N = kLanes<T>;
  const int64_t channels = a.groups * a.channels, taps = a.kernel_h * a.kernel_w;
  const bool patches = a.by_patches();
  const int64_t k = patches ? channels * taps : channels;
  const int64_t height = patches ? a.out_h : a.in_h, wide = patches ? a.out_w : a.in_w;
  const int64_t step_h = patches ? a.stride_h : 1, step_w = patches ? a.stride_w : 1;
  const int64_t step = (k + N - 1) / N * N * cols;  // of a pixel
  for (int64_t first = 0; first < k; first += N) {
    const int64_t used = k - first < N ? k - first : N;
    int64_t channel[N], up[N], left[N];  // of a block's rows
    for (int64_t i = 0; i < used; ++i) {
      const int64_t tap = patches ? (first + i) % taps : 0;
      channel[i] = patches ? (first + i) / taps : first + i;
      up[i] = patches ? tap / a.kernel_w * a.dilation_h - a.pad_h : 0;
      left[i] = patches ? tap % a.kernel_w * a.dilation_w - a.pad_w : 0;
    }
    T* to = dst + first * cols;
    for (int64_t h = 0; h < height; ++h)
      for (int64_t w = 0; w < wide; ++w, to += step) {
        const T* rows[N] = {};
        for (int64_t i = 0; i < used; ++i) {
          const int64_t ih = h * step_h + up[i], iw = w * step_w + left[i];
          if (ih >= 0 && ih < a.in_h && iw >= 0 && iw < a.in_w)
            rows[i] = x + ((ih * a.in_w + iw) * channels + channel[i]) * cols;
        }
        for (int64_t c = 0; c < cols; c += N) transpose_rows(rows, c, to + c * N);
      }
  }
}

// Pixels of the output, and the input pixels under one tap: h rows of w.
struct Pixels {
  int64_t h, w;
  int64_t dy_h, dy_w, x_h, x_w;  // steps in elements
};

// sums (Rows, Blocks N) += dy x^T over the pixels.
template <typename T, int Rows, int Blocks>
inline void conv_outer_micro(const Pixels& p, int64_t cols, const T* __restrict__ dy,
                             const T* __restrict__ x, T* __restrict__ sums) {
  constexpr int N = kLanes<T>;
  Vec<T> acc[Rows][Blocks];
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) acc[r][b] = Vec<T>{};
  for (int64_t h = 0; h < p.h; ++h)
    for (int64_t w = 0; w < p.w; ++w) {
      const T* d = dy + h * p.dy_h + w * p.dy_w;
      const T* from = x + h * p.x_h + w * p.x_w;
      for (int64_t i = 0; i < cols; ++i) {
        Vec<T> xv[Blocks];
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) xv[b] = load<T, N>(from + (b * cols + i) * N);
#pragma GCC unroll 24
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
          for (int b = 0; b < Blocks; ++b) acc[r][b] += d[r * cols + i] * xv[b];
      }
    }
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) {
      T* to = sums + (r * Blocks + b) * N;
      store<T, N>(to, load<T, N>(to) + acc[r][b]);
    }
}
template <typename T, int Rows, int Blocks>
inline void conv_outer_rows(int64_t rows, const Pixels& p, int64_t cols, const T* dy, const T* x,
                            T* sums) {
  if constexpr (Rows > 0) {
    if (rows != Rows) return conv_outer_rows<T, Rows - 1, Blocks>(rows, p, cols, dy, x, sums);
    conv_outer_micro<T, Rows, Blocks>(p, cols, dy, x, sums);
  }
}

// A strip is so many products of an element that dy and x of a micro-tile stay in the L1 cache; its
// sum goes into one of several strips in T, and that into the double.
constexpr int64_t kOuterStrip = 256;
constexpr int64_t kOuterDepth = 16384;
constexpr int64_t kOuterTiles = 64;  // micro-tiles that meet a strip: 96 KiB of sums at most

// Of one dimension: outputs o in [first, last) with 0 <= o * stride - pad + tap * dilation < size.
struct Outputs {
  int64_t first, last;
  Outputs(int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t size, int64_t from,
          int64_t to) {
    const int64_t at = tap * dilation - pad;
    first = at < 0 ? (-at + stride - 1) / stride : 0;
    last = at < size ? (size - at + stride - 1) / stride : 0;
    if (first < from) first = from;
    if (last > to) last = to;
  }
  bool empty() const { return first >= last; }
};

// All rows of dy and all taps of one group, for `Blocks` blocks of channels from `block`.
template <typename T, int Blocks>
inline void conv_outer_blocks(const ConvArgs& a, int64_t group, int64_t block, int64_t cols,
                              const T* dy, const T* x, double* g) {
  constexpr int N = kLanes<T>, kTall = Blocks == 1 && kRegisters == 32 ? 2 * kRows : kRows;
  constexpr int64_t kSums = kTall * Blocks * N;
  const int64_t channels = a.groups * a.channels, features = a.groups * a.rows;
  const int64_t width = (channels + N - 1) / N * N, taps = a.kernel_h * a.kernel_w;
  const PanelSplit split(a.rows, kTall);
  const int64_t tiles = taps * split.panels;  // panel by panel of each tap
  const int64_t whole = kOuterTiles / split.panels * split.panels;
  const int64_t together = whole > 0 ? whole : kOuterTiles;
  const int64_t fit = kOuterStrip / cols < 1 ? 1 : kOuterStrip / cols;  // pixels of a strip
  const int64_t strip_w = a.out_w < fit ? a.out_w : fit;
  const int64_t strip_h = strip_w < a.out_w ? 1 : fit / strip_w;
  alignas(64) T sums[kOuterTiles * kSums];
  bool met[kOuterTiles];
  const auto put = [&](int64_t from, int64_t to) {
    for (int64_t p = 0; p < split.panels; ++p)
      for (int64_t r = 0; r < split.rows(p); ++r) {
        const int64_t row = group * a.rows + split.first(p) + r;
        for (int64_t t = from + (p + split.panels - from % split.panels) % split.panels; t < to;
             t += split.panels) {
          if (!met[t - from]) continue;
          T* own = sums + (t - from) * kSums + r * Blocks * N;
          const int64_t first = block * N - group * a.channels;  // channel of the group, of own[0]
          double* target = g + (row * a.channels + first) * taps + t / split.panels;
          for (int64_t j = first < 0 ? -first : 0; j < Blocks * N && first + j < a.channels; ++j)
            target[j * taps] += double(own[j]);
          for (int j = 0; j < Blocks * N; ++j) own[j] = T(0);
        }
      }
  };
  for (int64_t from = 0; from < tiles; from += together) {
    const int64_t to = tiles - from < together ? tiles : from + together;
    for (int64_t i = 0; i < (to - from) * kSums; ++i) sums[i] = T(0);
    for (int64_t t = from; t < to; ++t) met[t - from] = false;
    int64_t depth = 0;
    for (int64_t h = 0; h < a.out_h; h += strip_h)
      for (int64_t w = 0; w < a.out_w; w += strip_w) {
        const int64_t h1 = a.out_h - h < strip_h ? a.out_h : h + strip_h;
        const int64_t w1 = a.out_w - w < strip_w ? a.out_w : w + strip_w;
        for (int64_t t = from; t < to; ++t) {
          const int64_t panel = t % split.panels, kh = t / split.panels / a.kernel_w;
          const int64_t kw = t / split.panels % a.kernel_w;
          const Outputs oh(kh, a.stride_h, a.pad_h, a.dilation_h, a.in_h, h, h1);
          const Outputs ow(kw, a.stride_w, a.pad_w, a.dilation_w, a.in_w, w, w1);
          if (oh.empty() || ow.empty()) continue;
          met[t - from] = true;
          Pixels p;
          p.h = oh.last - oh.first, p.w = ow.last - ow.first;
          p.dy_h = a.out_w * features * cols, p.dy_w = features * cols;
          p.x_h = a.stride_h * a.in_w * width * cols, p.x_w = a.stride_w * width * cols;
          const int64_t ih = oh.first * a.stride_h - a.pad_h + kh * a.dilation_h;
          const int64_t iw = ow.first * a.stride_w - a.pad_w + kw * a.dilation_w;
          const int64_t row = group * a.rows + split.first(panel);
          conv_outer_rows<T, kTall, Blocks>(
              split.rows(panel), p, cols,
              dy + ((oh.first * a.out_w + ow.first) * features + row) * cols,
              x + ((ih * a.in_w + iw) * width + block * N) * cols, sums + (t - from) * kSums);
        }
        depth += (h1 - h) * (w1 - w) * cols;
        if (depth >= kOuterDepth) put(from, to), depth = 0;
      }
    if (depth > 0) put(from, to);
  }
}

template <typename T>
void conv_outer_add(const ConvArgs& a, int64_t cols, const T* dy, const T* packed_x, double* g) {
  if (is_depthwise(a)) return depthwise_outer_add(a, cols, dy, packed_x, g);
  constexpr int N = kLanes<T>;
  if (a.by_patches()) {  // every pixel's own rows: one tap
    const ConvArgs flat{1, a.channels * a.kernel_h * a.kernel_w, a.rows, a.out_h, a.out_w,
                        a.out_h, a.out_w, 1, 1, 1, 1, 0, 0, 1, 1};
    return conv_outer_add<T>(flat, cols, dy, packed_x, g);
  }
  for (int64_t group = 0; group < a.groups; ++group) {
    const int64_t last = ((group + 1) * a.channels + N - 1) / N;
    int64_t b = group * a.channels / N;
    for (; b + 2 <= last; b += 2) conv_outer_blocks<T, 2>(a, group, b, cols, dy, packed_x, g);
    for (; b < last; ++b) conv_outer_blocks<T, 1>(a, group, b, cols, dy, packed_x, g);
  }
}

// g (weights, cols) = every sample's own product; x as it stands.
template <typename T>
void conv_outer_lanes(const ConvArgs& a, int64_t cols, const T* dy, const T* x, T* g) {
  constexpr int N = kLanes<T>;
  const int64_t channels = a.groups * a.channels, features = a.groups * a.rows;
  for (int64_t m = 0; m < features; ++m)
    for (int64_t c = 0; c < a.channels; ++c)
      for (int64_t kh = 0; kh < a.kernel_h; ++kh)
        for (int64_t kw = 0; kw < a.kernel_w; ++kw, g += cols)
          for (int64_t i = 0; i < cols; i += N) {
            Vec<T> sum{};
            for (int64_t oh = 0; oh < a.out_h; ++oh) {
              const int64_t ih = oh * a.stride_h - a.pad_h + kh * a.dilation_h;
              if (ih < 0 || ih >= a.in_h) continue;
              for (int64_t ow = 0; ow < a.out_w; ++ow) {
                const int64_t iw = ow * a.stride_w - a.pad_w + kw * a.dilation_w;
                if (iw < 0 || iw >= a.in_w) continue;
                const int64_t channel = m / a.rows * a.channels + c;
                sum += load<T, N>(dy + ((oh * a.out_w + ow) * features + m) * cols + i) *
                       load<T, N>(x + ((ih * a.in_w + iw) * channels + channel) * cols + i);
              }
            }
            store<T, N>(g + i, sum);
          }
}

// y += x * scale[c] + shift[c] (shift may be null).
template <typename T>
void channel_affine_add(int64_t pixels, int64_t channels, int64_t cols, const T* scale,
                        const T* shift, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const T b = shift != nullptr ? shift[c] : T(0);
      const int64_t at = (p * channels + c) * cols;
      for (int64_t i = 0; i < cols; i += N)
        store<T, N>(y + at + i, load<T, N>(y + at + i) + (load<T, N>(x + at + i) * scale[c] + b));
    }
}

// sums[c] += sum over pixels and columns of (x * scale[c] + shift[c]) * y.
template <typename T>
void channel_dots(int64_t pixels, int64_t channels, int64_t cols, const T* scale, const T* shift,
                  const T* x, const T* y, double* sums) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (p * channels + c) * cols;
      Vec<T> sum{};
      for (int64_t i = 0; i < cols; i += N)
        sum += (load<T, N>(x + at + i) * scale[c] + shift[c]) * load<T, N>(y + at + i);
      double total = 0;
      for (int l = 0; l < N; ++l) total += double(sum[l]);
      sums[c] += total;
    }
}

}  // namespace
}  // namespace pylandscape::cpu
