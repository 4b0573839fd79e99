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

template <typename T, int Rows>
inline void conv_reverse_panel(const ConvArgs& a, int64_t group, int64_t rows, int64_t row,
                               int64_t cols, const T* w, const T* dy, T* dx) {
  if constexpr (Rows > 0) {
    if (rows != Rows)
      return conv_reverse_panel<T, Rows - 1>(a, group, rows, row, cols, w, dy, dx);
    constexpr int N = kLanes<T>, V = vectors_for(Rows) < 2 ? 1 : 2;
    const int64_t channels = a.groups * a.channels, features = a.groups * a.rows;
    const Epilogue<T> add{nullptr, nullptr, dx, false};
    for (int64_t ih = 0; ih < a.in_h; ++ih) {
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
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t p = 0; p < split.panels; ++p) {
      const int64_t row = g * a.channels + split.first(p);
      conv_reverse_panel<T, kRows>(a, g, split.rows(p), row, cols, packed + row * depth, dy, dx);
    }
}

template <typename V, typename I>
inline V shuffled(V a, V b, I mask) {
  return __builtin_shuffle(a, b, mask);
}

// N x N elements of rows `stride` apart become N vectors one after the other: interleaving the
// halves log2 N times transposes.
template <typename T>
inline void transpose(const T* src, int64_t rows, int64_t stride, T* dst) {
  constexpr int N = kLanes<T>;
  IVec<T> low, high;
  for (int i = 0; i < N; ++i) {
    low[i] = i / 2 + (i % 2) * N;
    high[i] = low[i] + N / 2;
  }
  Vec<T> a[N], b[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) a[i] = i < rows ? load<T, N>(src + i * stride) : Vec<T>{};
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      b[2 * i] = shuffled(a[i], a[i + N / 2], low);
      b[2 * i + 1] = shuffled(a[i], a[i + N / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) store<T, N>(dst + i * N, a[i]);
}

// dst: for every pixel, blocks of N channels, each (cols, N), the last one filled up with zeros.
template <typename T>
void pack_pixels(int64_t pixels, int64_t channels, int64_t cols, const T* x, T* dst) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t first = 0; first < channels; first += N)
      for (int64_t c = 0; c < cols; c += N, dst += N * N)
        transpose(x + (p * channels + first) * cols + c,
                  channels - first < N ? channels - first : N, cols, dst);
}

// Pixels of the output, and the input pixels under one tap: h rows of w.
struct Pixels {
  int64_t h, w;
  int64_t dy_h, dy_w, x_h, x_w;  // steps in elements
};

template <typename T, int Rows, int Blocks>
inline void conv_outer_micro(const Pixels& p, int64_t cols, const T* __restrict__ dy,
                             const T* __restrict__ x, T* __restrict__ sums) {
  constexpr int N = kLanes<T>;
  Vec<T> acc[Rows][Blocks] = {};
  for (int64_t h = 0; h < p.h; ++h)
    for (int64_t w = 0; w < p.w; ++w) {
      const T* d = dy + h * p.dy_h + w * p.dy_w;
      const T* from = x + h * p.x_h + w * p.x_w;
      for (int64_t i = 0; i < cols; ++i) {
        Vec<T> xv[Blocks];
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) xv[b] = load<T, N>(from + (b * cols + i) * N);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
          for (int b = 0; b < Blocks; ++b) acc[r][b] += d[r * cols + i] * xv[b];
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) store<T, N>(sums + (r * Blocks + b) * N, acc[r][b]);
}

constexpr int64_t kOuterDepth = 2048;  // products summed in T before they go into the double

// One panel of rows of dy under one tap, for `Blocks` blocks of channels from `block`.
template <typename T, int Rows, int Blocks>
inline void conv_outer_blocks(const ConvArgs& a, int64_t group, int64_t rows, int64_t row,
                              int64_t block, int64_t kh, int64_t kw, int64_t cols, const T* dy,
                              const T* x, double* g) {
  if constexpr (Rows > 0) {
    if (rows != Rows)
      return conv_outer_blocks<T, Rows - 1, Blocks>(a, group, rows, row, block, kh, kw, cols, dy,
                                                    x, g);
    constexpr int N = kLanes<T>;
    const int64_t channels = a.groups * a.channels, features = a.groups * a.rows;
    const int64_t width = (channels + N - 1) / N * N;
    // Outputs o with 0 <= o * stride - pad + tap * dilation < size.
    const auto range = [](int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t size,
                          int64_t outputs, int64_t& first, int64_t& last) {
      const int64_t from = tap * dilation - pad;
      first = from < 0 ? (-from + stride - 1) / stride : 0;
      last = from < size ? (size - from + stride - 1) / stride : 0;
      if (last > outputs) last = outputs;
      if (first > last) first = last;
    };
    int64_t h0, h1, w0, w1;
    range(kh, a.stride_h, a.pad_h, a.dilation_h, a.in_h, a.out_h, h0, h1);
    range(kw, a.stride_w, a.pad_w, a.dilation_w, a.in_w, a.out_w, w0, w1);
    if (w0 == w1) return;
    const int64_t taps = a.kernel_h * a.kernel_w;
    const int64_t together = kOuterDepth / ((w1 - w0) * cols);
    const int64_t height = together < 1 ? 1 : together;
    for (int64_t h = h0; h < h1; h += height) {
      Pixels p;
      p.h = h1 - h < height ? h1 - h : height, p.w = w1 - w0;
      p.dy_h = a.out_w * features * cols, p.dy_w = features * cols;
      p.x_h = a.stride_h * a.in_w * width * cols, p.x_w = a.stride_w * width * cols;
      const int64_t ih = h * a.stride_h - a.pad_h + kh * a.dilation_h;
      const int64_t iw = w0 * a.stride_w - a.pad_w + kw * a.dilation_w;
      alignas(64) T sums[Rows * Blocks * N];
      conv_outer_micro<T, Rows, Blocks>(p, cols, dy + ((h * a.out_w + w0) * features + row) * cols,
                                        x + ((ih * a.in_w + iw) * width + block * N) * cols, sums);
      for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Blocks * N; ++j) {
          const int64_t c = block * N + j - group * a.channels;
          if (c >= 0 && c < a.channels)
            g[((row + r) * a.channels + c) * taps + kh * a.kernel_w + kw] +=
                double(sums[r * Blocks * N + j]);
        }
    }
  }
}

template <typename T>
void conv_outer_add(const ConvArgs& a, int64_t cols, const T* dy, const T* packed_x, double* g) {
  if (is_depthwise(a)) return depthwise_outer_add(a, cols, dy, packed_x, g);
  constexpr int N = kLanes<T>;
  const PanelSplit split(a.rows, kRows);
  for (int64_t group = 0; group < a.groups; ++group) {
    const int64_t first = group * a.channels / N;
    const int64_t last = ((group + 1) * a.channels + N - 1) / N;
    for (int64_t p = 0; p < split.panels; ++p)
      for (int64_t kh = 0; kh < a.kernel_h; ++kh)
        for (int64_t kw = 0; kw < a.kernel_w; ++kw) {
          const int64_t row = group * a.rows + split.first(p), rows = split.rows(p);
          int64_t b = first;
          for (; b + 2 <= last; b += 2)
            conv_outer_blocks<T, kRows, 2>(a, group, rows, row, b, kh, kw, cols, dy, packed_x, g);
          for (; b < last; ++b)
            conv_outer_blocks<T, kRows, 1>(a, group, rows, row, b, kh, kw, cols, dy, packed_x, g);
        }
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
