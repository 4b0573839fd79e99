// What first and second derivatives need beside the forward kernels. Only included by kernels.inl.
//
// Names: dy is the adjoint of y (dL/dy), a leading r marks the tangent along v (R-operator), so rdy
// is the tangent of the adjoint. Everything is added to its output.
namespace pylandscape::cpu {
namespace {

// dst: blocks of 2 N rows of x (k, cols), each (cols, 2 N), the last one filled up with zeros. A
// half of a block is N x N transposes.
template <typename T>
void pack_columns(int64_t k, int64_t cols, const T* x, T* dst) {
  constexpr int N = kLanes<T>, W = 2 * N;
  const int64_t whole = k / N * N, all = (k + W - 1) / W * W;
  for (int64_t row = 0; row < all; row += N) {
    T* to = dst + row / W * cols * W + row % W;
    if (row >= whole) {  // rows that are not there at the end
      for (int64_t c = 0; c < cols; ++c)
        for (int64_t r = row; r < row + N; ++r)
          to[c * W + r - row] = r < k ? x[r * cols + c] : T(0);
      continue;
    }
    for (int64_t c = 0; c < cols; c += N) {
      Vec<T> block[N];
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r) block[r] = load<T>(x + (row + r) * cols + c);
      transpose<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store<T, N>(to + (c + i) * W, block[i]);
    }
  }
}

// Panels of the transpose of src (m, k).
template <typename T>
void pack_transposed(int64_t m, int64_t k, const T* src, T* dst) {
  const PanelSplit split(k, kRows);
  for (int64_t p = 0; p < split.panels; ++p) {
    const int64_t rows = split.rows(p), first = split.first(p);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t r = 0; r < rows; ++r) *dst++ = src[i * k + first + r];
  }
}

constexpr int64_t kOuterSum = 1024;  // products of an element summed in T before they join the double

// Rows of a panel from `row` on and the block of x that holds row i, of `count` products; rows of g
// are `k` apart. ahead: cols[0] blocks of two vectors to be fetched meanwhile, or null.
template <typename T, int Rows>
inline void outer_block(int64_t rows, const int64_t* of_cols, int64_t count,
                        const T* const* packed, int64_t row, const T* const* columns, int64_t i,
                        int64_t width, int64_t k, double* g, const T* ahead = nullptr) {
  if constexpr (Rows > 0) {
    if (rows != Rows)
      return outer_block<T, Rows - 1>(rows, of_cols, count, packed, row, columns, i, width, k, g,
                                      ahead);
    constexpr int N = kLanes<T>;
    Vec<T> acc[Rows][2] = {};
    for (int64_t s = 0; s < count; ++s) {
      const int64_t cols = of_cols[s];
      const T* __restrict__ w = packed[s] + row * cols;
      const T* __restrict__ x = columns[s] + i * cols;
      for (int64_t c = 0; c < cols; ++c) {
        const Vec<T> x0 = load<T, N>(x + c * 2 * N), x1 = load<T, N>(x + c * 2 * N + N);
        if (ahead != nullptr)
          for (int v = 0; v < 2 * N; v += 64 / static_cast<int>(sizeof(T)))
            __builtin_prefetch(ahead + c * 2 * N + v, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          acc[r][0] += w[c * Rows + r] * x0;
          acc[r][1] += w[c * Rows + r] * x1;
        }
      }
    }
    constexpr int D = kLanes<double>;
    if (width == 2 * N) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        alignas(64) T out[2 * N];
        store<T, N>(out, acc[r][0]);
        store<T, N>(out + N, acc[r][1]);
#pragma GCC unroll 8
        for (int j = 0; j < 2 * N; j += D)
          store<double, D>(g + r * k + j, load<double, D>(g + r * k + j) + load_double<T, D>(out + j));
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        alignas(64) T out[2 * N];
        store<T, N>(out, acc[r][0]);
        store<T, N>(out + N, acc[r][1]);
        for (int64_t j = 0; j < width; ++j) g[r * k + j] += double(out[j]);
      }
    }
  }
}

template <typename T>
void outer_add(int64_t m, int64_t k, int64_t stride, int64_t count, const int64_t* cols,
               const T* const* packed, const T* const* columns, double* g) {
  constexpr int W = 2 * kLanes<T>;
  const PanelSplit split(m, kRows);
  for (int64_t s = 0, end; s < count; s = end) {
    int64_t sum = cols[s];
    for (end = s + 1; end < count && sum + cols[end] <= kOuterSum; ++end) sum += cols[end];
    for (int64_t p = 0; p < split.panels; ++p) {
      const int64_t row = split.first(p);
      for (int64_t i = 0; i < k; i += W)
        outer_block<T, kRows>(split.rows(p), cols + s, end - s, packed + s, row, columns + s, i,
                              k - i < W ? k - i : W, stride, g + row * stride + i);
    }
  }
}

template <typename T>
void outer_add_rows(int64_t m, int64_t k, int64_t cols, int64_t count, const T* const* packed,
                    const T* x, double* const* g) {
  constexpr int W = 2 * kLanes<T>;
  const PanelSplit split(m, kRows);
  alignas(64) T block[kDirectColumns * W];
  const T* columns = block;
  for (int64_t i = 0; i < k; i += W) {
    const int64_t width = k - i < W ? k - i : W;
    pack_columns(width, cols, x + i * cols, block);
    const T* ahead = i + 2 * W <= k ? x + (i + W) * cols : nullptr;  // during the first panel
    for (int64_t s = 0; s < count; ++s)
      for (int64_t p = 0; p < split.panels; ++p) {
        const int64_t row = split.first(p);
        outer_block<T, kRows>(split.rows(p), &cols, 1, packed + s, row, &columns, 0, width, k,
                              g[s] + row * k + i, ahead);
        ahead = nullptr;
      }
  }
}

template <typename T>
void row_sums_add(int64_t m, int64_t cols, const T* x, double* sums) {
  constexpr int D = kLanes<double>;
  for (int64_t r = 0; r < m; ++r) {
    Vec<double, D> sum{};
    for (int64_t c = 0; c < cols; c += D) sum += load_double<T, D>(x + r * cols + c);
    double total = 0;
    for (int l = 0; l < D; ++l) total += sum[l];
    sums[r] += total;
  }
}

template <typename T>
void product_add(int64_t n, T scale, const T* x, const T* y, T* out) {
  constexpr int N = kLanes<T>;
  for (int64_t i = 0; i < n; i += N) {
    Vec<T> v = scale * load<T, N>(x + i);
    if (y != nullptr) v *= load<T, N>(y + i);
    store<T, N>(out + i, load<T, N>(out + i) + v);
  }
}

template <typename T>
void mask(int64_t n, const T* output, T* gradient) {
  constexpr int N = kLanes<T>;
  for (int64_t i = 0; i < n; i += N) {
    const Vec<T> g = load<T, N>(gradient + i);
    store<T, N>(gradient + i, load<T, N>(output + i) > 0 ? g : Vec<T>{});
  }
}

template <typename T>
void scale_columns(int64_t features, int64_t cols, const T* weights, T* x) {
  constexpr int N = kLanes<T>;
  for (int64_t c = 0; c < cols; c += N) {
    const Vec<T> w = load<T, N>(weights + c);
    for (int64_t f = 0; f < features; ++f)
      store<T, N>(x + f * cols + c, w * load<T, N>(x + f * cols + c));
  }
}

template <typename T>
void column_dots(int64_t features, int64_t cols, const T* x, const T* y, T* dots) {
  constexpr int D = kLanes<double>;
  for (int64_t c = 0; c < cols; c += D) {
    Vec<double, D> sum{};
    for (int64_t f = 0; f < features; ++f)
      sum += load_double<T, D>(x + f * cols + c) * load_double<T, D>(y + f * cols + c);
    for (int l = 0; l < D; ++l) dots[c + l] = static_cast<T>(sum[l]);
  }
}

// With q = x / y: dx = dq / y, dy = -dq q / y; along v: rq = (rx - q ry) / y.
template <typename T>
void divide_tangent(int64_t n, const T* y, const T* q, const T* rx, const T* ry, T* rq) {
  for (int64_t i = 0; i < n; ++i)
    rq[i] = ((rx != nullptr ? rx[i] : T(0)) - (ry != nullptr ? q[i] * ry[i] : T(0))) / y[i];
}
template <typename T>
void divide_reverse(int64_t n, const T* y, const T* q, const T* dq, T* dx, T* dy) {
  for (int64_t i = 0; i < n; ++i) {
    const T d = dq[i] / y[i];
    dx[i] += d;
    dy[i] -= d * q[i];
  }
}
// With d = dq / y: rd = (rdq - d ry) / y, and dy = -d q gives rdy = -rd q - d rq.
template <typename T>
void divide_reverse_tangent(int64_t n, const T* y, const T* q, const T* dq, const T* ry,
                            const T* rq, const T* rdq, T* rdx, T* rdy) {
  for (int64_t i = 0; i < n; ++i) {
    const T d = dq[i] / y[i];
    const T rd = (rdq[i] - (ry != nullptr ? d * ry[i] : T(0))) / y[i];
    rdx[i] += rd;
    rdy[i] -= rd * q[i] + d * rq[i];
  }
}

template <typename T, int D>
inline void add_narrow(T* p, Vec<double, D> v) {
  for (int l = 0; l < D; ++l) p[l] += static_cast<T>(v[l]);
}

// y = softmax(x), or log_softmax with p = exp(y).
//   ry = y (rx - <y rx>)             log: ry = rx - <p rx>
//   dx = y (dy - <y dy>)             log: dx = dy - p <1 dy>
// <.> is the sum over the classes.
template <typename T, typename F>
inline void each_softmax(const SoftmaxArgs& a, int64_t cols, F f) {
  const int64_t stride = a.inner * cols;
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t c = 0; c < stride; c += kLanes<double>) f(o * a.size * stride + c, stride);
}

template <typename T>
inline Vec<double, kLanes<double>> probability(const SoftmaxArgs& a, const T* y) {
  constexpr int D = kLanes<double>;
  const auto v = load_double<T, D>(y);
  return a.log ? exp<double, D>(v) : v;
}

template <typename T>
void softmax_tangent(const SoftmaxArgs& a, int64_t cols, const T* y, const T* rx, T* ry) {
  constexpr int D = kLanes<double>;
  each_softmax<T>(a, cols, [&](int64_t at, int64_t stride) {
    Vec<double, D> mean{};
    for (int64_t f = 0; f < a.size; ++f)
      mean += probability(a, y + at + f * stride) * load_double<T, D>(rx + at + f * stride);
    for (int64_t f = 0; f < a.size; ++f) {
      auto v = load_double<T, D>(rx + at + f * stride) - mean;
      if (!a.log) v *= probability(a, y + at + f * stride);
      for (int l = 0; l < D; ++l) ry[at + f * stride + l] = static_cast<T>(v[l]);
    }
  });
}

template <typename T>
void softmax_reverse(const SoftmaxArgs& a, int64_t cols, const T* y, const T* dy, T* dx) {
  constexpr int D = kLanes<double>;
  each_softmax<T>(a, cols, [&](int64_t at, int64_t stride) {
    Vec<double, D> sum{};
    for (int64_t f = 0; f < a.size; ++f) {
      const auto d = load_double<T, D>(dy + at + f * stride);
      sum += a.log ? d : d * probability(a, y + at + f * stride);
    }
    for (int64_t f = 0; f < a.size; ++f) {
      const auto d = load_double<T, D>(dy + at + f * stride);
      const auto p = probability(a, y + at + f * stride);
      add_narrow<T, D>(dx + at + f * stride, a.log ? d - p * sum : p * (d - sum));
    }
  });
}

template <typename T>
void softmax_reverse_tangent(const SoftmaxArgs& a, int64_t cols, const T* y, const T* ry,
                             const T* dy, const T* rdy, T* rdx) {
  constexpr int D = kLanes<double>;
  using V = Vec<double, D>;
  each_softmax<T>(a, cols, [&](int64_t at, int64_t stride) {
    V sum{}, rsum{};  // <y dy> and its tangent; log: <1 dy> and its tangent
    for (int64_t f = 0; f < a.size; ++f) {
      const int64_t i = at + f * stride;
      const V d = load_double<T, D>(dy + i), rd = load_double<T, D>(rdy + i);
      sum += a.log ? d : d * probability(a, y + i);
      rsum += a.log ? rd : rd * probability(a, y + i) + d * load_double<T, D>(ry + i);
    }
    for (int64_t f = 0; f < a.size; ++f) {
      const int64_t i = at + f * stride;
      const V d = load_double<T, D>(dy + i), rd = load_double<T, D>(rdy + i);
      const V p = probability(a, y + i), r = load_double<T, D>(ry + i);
      add_narrow<T, D>(rdx + i, a.log ? rd - p * r * sum - p * rsum
                                      : r * (d - sum) + p * (rd - rsum));
    }
  });
}

}  // namespace
}  // namespace pylandscape::cpu
