// Convolutions of every channel by itself. Only included by kernels.inl, before conv.inl.
//
// A pixel's channels lie one after the other, and each has few products: all taps of a channel meet
// one vector of columns in registers, and the next channel's rows are the next in memory. Weights
// are one run of taps for each channel (what both packings of conv.inl are here).
namespace pylandscape::cpu {
namespace {

constexpr int64_t kDepthwiseTaps = 64;           // of a channel at most
constexpr int64_t kDepthwiseBytes = 192 << 10;   // of the rows of pixels that outputs share
constexpr int64_t kDepthwiseDepth = 2048;        // products summed in T before they go into the double

inline bool is_depthwise(const ConvArgs& a) {
  return a.channels == 1 && a.rows == 1 && a.groups > 1 &&
         a.kernel_h * a.kernel_w <= kDepthwiseTaps;
}

// The taps that one output meets (backward: that one input reached), and how far from the first
// element of the other side their elements are.
struct DepthwiseTaps {
  int64_t count = 0, tap[kDepthwiseTaps], at[kDepthwiseTaps];
};

// Where tap t leads from position o of one dimension: -1 beyond the other side's `size`.
inline int64_t depthwise_forward(int64_t o, int64_t t, int64_t stride, int64_t pad,
                                 int64_t dilation, int64_t size) {
  const int64_t at = o * stride - pad + t * dilation;
  return at >= 0 && at < size ? at : -1;
}
inline int64_t depthwise_back(int64_t i, int64_t t, int64_t stride, int64_t pad, int64_t dilation,
                              int64_t size) {
  const int64_t at = i + pad - t * dilation;
  return at >= 0 && at % stride == 0 && at / stride < size ? at / stride : -1;
}

// y (channels, cols) of one pixel, channels from `first` on; Count taps, or taps.count if 0.
template <typename T, int Count, int Vectors>
inline void depthwise_columns(const DepthwiseTaps& taps, int64_t area, int64_t channel,
                              int64_t column, int64_t cols, const T* w, const T* x,
                              const Epilogue<T>& e, int64_t to, T* y) {
  constexpr int N = kLanes<T>;
  const int64_t count = Count > 0 ? Count : taps.count;
  const T* from = x + channel * cols + column;
  const T* own = w + channel * area;
  Vec<T> acc[Vectors] = {};
#pragma GCC unroll 9
  for (int64_t t = 0; t < count; ++t) {
    const T weight = Count > 0 ? own[t] : own[taps.tap[t]];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[v] += weight * load<T, N>(from + taps.at[t] + v * N);
  }
  const T scale = e.scale != nullptr ? e.scale[channel] : T(1);
  const T shift = e.shift != nullptr ? e.shift[channel] : T(0);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const int64_t at = to + channel * cols + column + v * N;
    Vec<T> out = acc[v] * scale + shift;
    if (e.add != nullptr) out += load<T, N>(e.add + at);
    store<T, N>(y + at, e.relu ? vmax(out, Vec<T>{}) : out);
  }
}

template <typename T, int Count>
inline void depthwise_pixel(const DepthwiseTaps& taps, int64_t area, int64_t first, int64_t last,
                            int64_t cols, const T* w, const T* x, const Epilogue<T>& e, int64_t to,
                            T* y) {
  constexpr int N = kLanes<T>;
  for (int64_t c = first; c < last; ++c) {
    int64_t i = 0;
    for (; i + 4 * N <= cols; i += 4 * N)
      depthwise_columns<T, Count, 4>(taps, area, c, i, cols, w, x, e, to, y);
    for (; i + 2 * N <= cols; i += 2 * N)
      depthwise_columns<T, Count, 2>(taps, area, c, i, cols, w, x, e, to, y);
    for (; i < cols; i += N)
      depthwise_columns<T, Count, 1>(taps, area, c, i, cols, w, x, e, to, y);
  }
}

// y of every pixel (out_h, out_w) from x (in_h, in_w): `reach` says where taps lead.
template <typename T, typename F>
inline void depthwise_pixels(const ConvArgs& a, int64_t cols, int64_t in_h, int64_t in_w,
                             int64_t out_h, int64_t out_w, const T* w, const T* x,
                             const Epilogue<T>& e, T* y, F reach) {
  const int64_t channels = a.groups, area = a.kernel_h * a.kernel_w;
  const int64_t fit =
      kDepthwiseBytes / (a.kernel_h * in_w * cols * static_cast<int64_t>(sizeof(T)));
  const int64_t together = fit < 4 ? 4 : fit;
  for (int64_t first = 0; first < channels; first += together) {
    const int64_t last = channels - first < together ? channels : first + together;
    for (int64_t h = 0; h < out_h; ++h)
      for (int64_t v = 0; v < out_w; ++v) {
        DepthwiseTaps taps;
        for (int64_t kh = 0; kh < a.kernel_h; ++kh) {
          const int64_t row = reach(h, kh, a.stride_h, a.pad_h, a.dilation_h, in_h);
          if (row < 0) continue;
          for (int64_t kw = 0; kw < a.kernel_w; ++kw) {
            const int64_t column = reach(v, kw, a.stride_w, a.pad_w, a.dilation_w, in_w);
            if (column < 0) continue;
            taps.tap[taps.count] = kh * a.kernel_w + kw;
            taps.at[taps.count++] = (row * in_w + column) * channels * cols;
          }
        }
        const int64_t to = (h * out_w + v) * channels * cols;
        if (area == 9 && taps.count == 9)
          depthwise_pixel<T, 9>(taps, area, first, last, cols, w, x, e, to, y);
        else
          depthwise_pixel<T, 0>(taps, area, first, last, cols, w, x, e, to, y);
      }
  }
}

template <typename T>
void depthwise(const ConvArgs& a, int64_t cols, const T* w, const T* x, const Epilogue<T>& e,
               T* y) {
  depthwise_pixels<T>(a, cols, a.in_h, a.in_w, a.out_h, a.out_w, w, x, e, y, depthwise_forward);
}

// dx += W^T dy.
template <typename T>
void depthwise_reverse(const ConvArgs& a, int64_t cols, const T* w, const T* dy, T* dx) {
  const Epilogue<T> add{nullptr, nullptr, dx, false};
  depthwise_pixels<T>(a, cols, a.out_h, a.out_w, a.in_h, a.in_w, w, dy, add, dx, depthwise_back);
}

// `Count` taps of neighbouring columns of one kernel row: sums += the products of dy (cols, N) with
// the pixels of x that they meet.
template <typename T, int Count>
inline void depthwise_outer_taps(int64_t cols, int64_t step, const T* __restrict__ dy,
                                 const T* __restrict__ x, T* __restrict__ sums) {
  constexpr int N = kLanes<T>;
  Vec<T> acc[Count];
#pragma GCC unroll 4
  for (int t = 0; t < Count; ++t) acc[t] = load<T, N>(sums + t * N);
  for (int64_t i = 0; i < cols; ++i) {
    const Vec<T> d = load<T, N>(dy + i * N);
#pragma GCC unroll 4
    for (int t = 0; t < Count; ++t) acc[t] += d * load<T, N>(x + t * step + i * N);
  }
#pragma GCC unroll 4
  for (int t = 0; t < Count; ++t) store<T, N>(sums + t * N, acc[t]);
}

// g (channels, taps) += dy x^T, channel by channel, with N channels as the lanes; x by pack_pixels
// (pixels, blocks of N channels, cols, N).
template <typename T>
void depthwise_outer_add(const ConvArgs& a, int64_t cols, const T* dy, const T* packed_x,
                         double* g) {
  constexpr int N = kLanes<T>;
  constexpr int64_t kColumns = 256;  // transposed together
  const int64_t channels = a.groups, area = a.kernel_h * a.kernel_w;
  const int64_t blocks = (channels + N - 1) / N, step = a.dilation_w * blocks * N * cols;
  alignas(64) T turned[kColumns * N];
  alignas(64) T sums[kDepthwiseTaps * N];
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t used = channels - b * N < N ? channels - b * N : N;
    for (int64_t i = 0; i < area * N; ++i) sums[i] = T(0);
    int64_t depth = 0;
    const auto flush = [&] {
      for (int64_t l = 0; l < used; ++l)
        for (int64_t t = 0; t < area; ++t)
          g[(b * N + l) * area + t] += double(sums[t * N + l]);
      for (int64_t i = 0; i < area * N; ++i) sums[i] = T(0);
      depth = 0;
    };
    for (int64_t h = 0; h < a.out_h; ++h)
      for (int64_t v = 0; v < a.out_w; ++v) {
        const T* d = dy + ((h * a.out_w + v) * channels + b * N) * cols;
        for (int64_t c = 0; c < cols; c += kColumns) {
          const int64_t count = cols - c < kColumns ? cols - c : kColumns;
          for (int64_t i = 0; i < count; i += N) {
            Vec<T> block[N];
#pragma GCC unroll 16
            for (int l = 0; l < N; ++l)
              block[l] = l < used ? load<T, N>(d + l * cols + c + i) : Vec<T>{};
            transpose<T>(block);
#pragma GCC unroll 16
            for (int l = 0; l < N; ++l) store<T, N>(turned + (i + l) * N, block[l]);
          }
          for (int64_t kh = 0; kh < a.kernel_h; ++kh) {
            const int64_t row = depthwise_forward(h, kh, a.stride_h, a.pad_h, a.dilation_h, a.in_h);
            if (row < 0) continue;
            int64_t kw = 0, to = a.kernel_w;
            const auto beyond = [&](int64_t t) {
              return depthwise_forward(v, t, a.stride_w, a.pad_w, a.dilation_w, a.in_w) < 0;
            };
            while (kw < to && beyond(kw)) ++kw;
            while (kw < to && beyond(to - 1)) --to;
            while (kw < to) {
              const int64_t column = v * a.stride_w - a.pad_w + kw * a.dilation_w;
              const T* from = packed_x + ((row * a.in_w + column) * blocks + b) * N * cols + c * N;
              T* own = sums + (kh * a.kernel_w + kw) * N;
              if (to - kw >= 3) {
                depthwise_outer_taps<T, 3>(count, step, turned, from, own), kw += 3;
              } else if (to - kw == 2) {
                depthwise_outer_taps<T, 2>(count, step, turned, from, own), kw += 2;
              } else {
                depthwise_outer_taps<T, 1>(count, step, turned, from, own), kw += 1;
              }
            }
          }
        }
        depth += cols;
        if (depth >= kDepthwiseDepth) flush();
      }
    flush();
  }
}

}  // namespace
}  // namespace pylandscape::cpu
