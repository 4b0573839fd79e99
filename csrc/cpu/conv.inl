// Convolutions. Only included by kernels.inl.
//
// Rows run through (h, w, channel), so that all channels of neighbouring pixels are one matrix and
// a pixel of the output is a product with rows of the input that lie in few runs: one per kernel
// row, or one per tap where taps are not neighbours. Nothing is copied; taps that fall into the
// padding are left out. Weights are packed in panels as for `linear`, each (taps, channels, rows).
namespace pylandscape::cpu {
namespace {

// The rows of x that one output pixel reads, and the weights they meet: n1 x n2 runs of k rows.
struct Runs {
  int64_t n1, x1, w1;  // steps in rows of x and in elements of a packed row
  int64_t n2, x2, w2;
  int64_t k;
};

template <typename T>
void pack_conv(const ConvArgs& a, const T* src, T* dst) {
  const int64_t taps = a.kernel_h * a.kernel_w;
  const PanelSplit split(a.rows, kRows);
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t p = 0; p < split.panels; ++p) {
      const int64_t rows = split.rows(p), first = g * a.rows + split.first(p);
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t c = 0; c < a.channels; ++c)
          for (int64_t r = 0; r < rows; ++r)
            *dst++ = src[((first + r) * a.channels + c) * taps + t];
    }
}

template <typename T, int Rows, int Vectors>
inline void conv_micro(const Runs& runs, int64_t cols, const T* __restrict__ w,
                       const T* __restrict__ x, const Epilogue<T>& e, int64_t row, int64_t at,
                       T* y) {
  constexpr int N = kLanes<T>;
  Vec<T> acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[r][v] = Vec<T>{};
  for (int64_t i1 = 0; i1 < runs.n1; ++i1)
    for (int64_t i2 = 0; i2 < runs.n2; ++i2) {
      const T* xr = x + (i1 * runs.x1 + i2 * runs.x2) * cols;
      const T* wr = w + (i1 * runs.w1 + i2 * runs.w2) * Rows;
      for (int64_t i = 0; i < runs.k; ++i) {
        Vec<T> xv[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) xv[v] = load<T, N>(xr + i * cols + v * N);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          const T weight = wr[i * Rows + r];
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) acc[r][v] += weight * xv[v];
        }
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    const T scale = e.scale != nullptr ? e.scale[row + r] : T(1);
    const T shift = e.shift != nullptr ? e.shift[row + r] : T(0);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const int64_t to = at + r * cols + v * N;
      Vec<T> out = acc[r][v] * scale + shift;
      if (e.add != nullptr) out += load<T, N>(e.add + to);
      store<T, N>(y + to, e.relu ? vmax(out, Vec<T>{}) : out);
    }
  }
}

// Of one dimension: the taps that meet the image at output `o`, [first, last).
struct Taps {
  int64_t first, last;
  Taps(int64_t o, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel, int64_t size) {
    const int64_t from = o * stride - pad;  // where tap 0 falls
    first = from < 0 ? (-from + dilation - 1) / dilation : 0;
    last = from < size ? (size - from + dilation - 1) / dilation : 0;
    if (last > kernel) last = kernel;
    if (first > last) first = last;
  }
};

// Rows of pixels, `size` elements each, that stay in the second-level cache while all panels of the
// weights meet them: one at least.
template <typename T>
inline int64_t conv_strip(int64_t size) {
  const int64_t fit = (512 << 10) / (size * int64_t(sizeof(T)));
  return fit < 1 ? 1 : fit;
}

// Rows [first, last) of the output's pixels.
template <typename T, int Rows>
inline void conv_panel(const ConvArgs& a, int64_t group, int64_t rows, int64_t row, int64_t first,
                       int64_t last, int64_t cols, const T* w, const T* x, const Epilogue<T>& e,
                       T* y) {
  if constexpr (Rows > 0) {
    if (rows != Rows)
      return conv_panel<T, Rows - 1>(a, group, rows, row, first, last, cols, w, x, e, y);
    constexpr int N = kLanes<T>, V = vectors_for(Rows);
    const int64_t channels = a.groups * a.channels, features = a.groups * a.rows;
    const bool together = a.groups == 1 && a.dilation_w == 1;
    for (int64_t oh = first; oh < last; ++oh) {
      const Taps th(oh, a.stride_h, a.pad_h, a.dilation_h, a.kernel_h, a.in_h);
      const int64_t ih = oh * a.stride_h - a.pad_h + th.first * a.dilation_h;
      for (int64_t ow = 0; ow < a.out_w; ++ow) {
        const Taps tw(ow, a.stride_w, a.pad_w, a.dilation_w, a.kernel_w, a.in_w);
        const int64_t iw = ow * a.stride_w - a.pad_w + tw.first * a.dilation_w;
        Runs runs;
        runs.n1 = th.last - th.first, runs.n2 = tw.last - tw.first, runs.k = a.channels;
        if (runs.n2 == 0) runs.n1 = 0;
        runs.x1 = a.dilation_h * a.in_w * channels, runs.w1 = a.kernel_w * a.channels;
        runs.x2 = a.dilation_w * channels, runs.w2 = a.channels;
        if (together) runs.k *= runs.n2, runs.n2 = 1;
        const T* from = x + ((ih * a.in_w + iw) * channels + group * a.channels) * cols;
        const T* weights = w + (th.first * a.kernel_w + tw.first) * a.channels * Rows;
        const int64_t at = ((oh * a.out_w + ow) * features + row) * cols;
        int64_t c = 0;
        for (; c + V * N <= cols; c += V * N)
          conv_micro<T, Rows, V>(runs, cols, weights, from + c, e, row, at + c, y);
        if constexpr (V > 4)
          for (; c + 4 * N <= cols; c += 4 * N)
            conv_micro<T, Rows, 4>(runs, cols, weights, from + c, e, row, at + c, y);
        if constexpr (V > 2)
          for (; c + 2 * N <= cols; c += 2 * N)
            conv_micro<T, Rows, 2>(runs, cols, weights, from + c, e, row, at + c, y);
        for (; c < cols; c += N)
          conv_micro<T, Rows, 1>(runs, cols, weights, from + c, e, row, at + c, y);
      }
    }
  }
}

template <typename T>
void conv(const ConvArgs& a, int64_t cols, const T* packed, const T* x, const Epilogue<T>& e,
          T* y) {
  if (is_depthwise(a)) return depthwise(a, cols, packed, x, e, y);
  const int64_t depth = a.channels * a.kernel_h * a.kernel_w;
  const PanelSplit split(a.rows, kRows);
  const int64_t strip = conv_strip<T>(a.stride_h * a.in_w * a.channels * cols);
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t h = 0; h < a.out_h; h += strip)
      for (int64_t p = 0; p < split.panels; ++p) {
        const int64_t row = g * a.rows + split.first(p);
        const int64_t last = a.out_h - h < strip ? a.out_h : h + strip;
        conv_panel<T, kRows>(a, g, split.rows(p), row, h, last, cols, packed + row * depth, x, e,
                             y);
      }
}

// y = x * scale[c] + shift[c], then max(., 0) when relu; rows run through (pixel, channel).
template <typename T>
void channel_affine(int64_t pixels, int64_t channels, int64_t cols, const T* scale, const T* shift,
                    bool relu, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (p * channels + c) * cols;
      for (int64_t i = 0; i < cols; i += N) {
        const Vec<T> v = load<T, N>(x + at + i) * scale[c] + shift[c];
        store<T, N>(y + at + i, relu ? vmax(v, Vec<T>{}) : v);
      }
    }
}

}  // namespace
}  // namespace pylandscape::cpu
