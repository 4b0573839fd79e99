// What first and second derivatives need beside the forward kernels. Only included by kernels.inl.
//
// Names: dy is the adjoint of y (dL/dy), a leading r marks the tangent along v (R-operator), so rdy
// is the tangent of the adjoint. Everything is added to its output.
namespace pylandscape::cpu {
namespace {

// dst: blocks of 2 N rows of x (k, cols), each (cols, 2 N), the last one filled up with zeros.
template <typename T>
void pack_columns(int64_t k, int64_t cols, const T* x, T* dst) {
  constexpr int W = 2 * kLanes<T>;
  for (int64_t first = 0; first < k; first += W, dst += cols * W) {
    const int64_t rows = k - first < W ? k - first : W;
    for (int64_t c = 0; c < cols; c += W) {  // W x W blocks stay in the L1 cache
      const int64_t end = c + W < cols ? c + W : cols;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = c; i < end; ++i) dst[i * W + r] = x[(first + r) * cols + i];
      for (int64_t r = rows; r < W; ++r)
        for (int64_t i = c; i < end; ++i) dst[i * W + r] = T(0);
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

template <typename T, int Rows>
inline void outer_block(int64_t rows, int64_t cols, const T* __restrict__ w,
                        const T* __restrict__ x, int64_t width, int64_t k, double* g) {
  if constexpr (Rows > 0) {
    if (rows != Rows) return outer_block<T, Rows - 1>(rows, cols, w, x, width, k, g);
    constexpr int N = kLanes<T>;
    Vec<T> acc[Rows][2] = {};
    for (int64_t i = 0; i < cols; ++i) {
      const Vec<T> x0 = load<T, N>(x + i * 2 * N), x1 = load<T, N>(x + i * 2 * N + N);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        acc[r][0] += w[i * Rows + r] * x0;
        acc[r][1] += w[i * Rows + r] * x1;
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
void outer_add(int64_t m, int64_t k, int64_t cols, const T* packed, const T* columns, double* g) {
  constexpr int W = 2 * kLanes<T>;
  const PanelSplit split(m, kRows);
  for (int64_t p = 0; p < split.panels; ++p) {
    const int64_t row = split.first(p);
    for (int64_t i = 0; i < k; i += W)
      outer_block<T, kRows>(split.rows(p), cols, packed + row * cols, columns + i * cols,
                            k - i < W ? k - i : W, k, g + row * k + i);
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

// The features of the groups of a layer or group norm.
struct NormFeature {
  int64_t row, gain;
};
struct NormRows {
  int64_t outer, size, pixels, width;
  bool channels;
  explicit NormRows(const NormArgs& a)
      : outer(a.outer), size(a.size), pixels(a.pixels), width(a.size / a.pixels),
        channels(a.channels) {}
  // f(feature) for those of group o.
  template <typename F>
  void each(int64_t o, F f) const {
    const int64_t gain = channels ? o * width : 0;
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t w = 0; w < width; ++w)
        f(NormFeature{(p * outer + o) * width + w, gain + w});
  }
};

// Per column of one group: z = (x - mean) s with s = 1 / sqrt(variance + eps); y = gain z + shift.
// Along v: rz = s (rx - mean rx - z <z rx>) and rs = -s^2 <z rx>; <.> is the mean over the group.
// Backward, with g = gain dy: dx = s u, u = g - <g> - z <g z>.
template <typename T>
struct NormColumn {
  static constexpr int D = kLanes<double>;
  using V = Vec<double, D>;
  const T* x;
  int64_t cols;
  V mean{}, scale{};
  NormColumn(const T* values, const NormRows& rows, int64_t group, int64_t stride, double eps)
      : x(values), cols(stride) {
    const double size = double(rows.size);
    rows.each(group, [&](NormFeature f) { mean += load_double<T, D>(x + f.row * cols); });
    mean /= size;
    V variance{};
    rows.each(group, [&](NormFeature f) {
      const V d = load_double<T, D>(x + f.row * cols) - mean;
      variance += d * d;
    });
    for (int l = 0; l < D; ++l) scale[l] = 1.0 / __builtin_sqrt(variance[l] / size + eps);
  }
  V z(NormFeature f) const { return (load_double<T, D>(x + f.row * cols) - mean) * scale; }
};

template <int D>
inline double total(Vec<double, D> v) {
  double sum = 0;
  for (int l = 0; l < D; ++l) sum += v[l];
  return sum;
}
template <typename T, int D>
inline void add_narrow(T* p, Vec<double, D> v) {
  for (int l = 0; l < D; ++l) p[l] += static_cast<T>(v[l]);
}

template <typename T>
void layer_norm_tangent(const NormArgs& a, int64_t cols, const T* gain, const T* x, const T* rx,
                        const T* rgain, const T* rshift, T* ry) {
  using Column = NormColumn<T>;
  using V = typename Column::V;
  constexpr int D = Column::D;
  const NormRows rows(a);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t c = 0; c < cols; c += D) {
      const Column column(x + c, rows, o, cols, a.eps);
      V mean{}, dot{};
      if (rx != nullptr)
        rows.each(o, [&](NormFeature f) {
          const V r = load_double<T, D>(rx + f.row * cols + c);
          mean += r;
          dot += r * column.z(f);
        });
      mean /= double(a.size), dot /= double(a.size);
      rows.each(o, [&](NormFeature f) {
        const V z = column.z(f);
        V v{};
        if (rx != nullptr)
          v = column.scale * (load_double<T, D>(rx + f.row * cols + c) - mean - z * dot);
        if (gain != nullptr) v *= double(gain[f.gain]);
        if (rgain != nullptr) v += double(rgain[f.gain]) * z;
        if (rshift != nullptr) v += double(rshift[f.gain]);
        for (int l = 0; l < D; ++l) ry[f.row * cols + c + l] = static_cast<T>(v[l]);
      });
    }
}

template <typename T>
void layer_norm_reverse(const NormArgs& a, int64_t cols, const T* gain, const T* x, const T* dy,
                        T* dx, double* dgain, double* dshift) {
  using Column = NormColumn<T>;
  using V = typename Column::V;
  constexpr int D = Column::D;
  const NormRows rows(a);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t c = 0; c < cols; c += D) {
      const Column column(x + c, rows, o, cols, a.eps);
      V mean{}, dot{};
      rows.each(o, [&](NormFeature f) {
        const V d = load_double<T, D>(dy + f.row * cols + c), z = column.z(f);
        const V g = gain != nullptr ? d * double(gain[f.gain]) : d;
        mean += g;
        dot += g * z;
        if (dgain != nullptr) dgain[f.gain] += total<D>(d * z);
        if (dshift != nullptr) dshift[f.gain] += total<D>(d);
      });
      if (dx == nullptr) continue;
      mean /= double(a.size), dot /= double(a.size);
      rows.each(o, [&](NormFeature f) {
        const V d = load_double<T, D>(dy + f.row * cols + c);
        const V g = gain != nullptr ? d * double(gain[f.gain]) : d;
        add_narrow<T, D>(dx + f.row * cols + c, column.scale * (g - mean - column.z(f) * dot));
      });
    }
}

// rdx = rs u + s (rg - <rg> - rz <g z> - z (<rg z> + <g rz>)), rg = rgain dy + gain rdy.
template <typename T>
void layer_norm_reverse_tangent(const NormArgs& a, int64_t cols, const T* gain, const T* rgain,
                                const T* x, const T* rx, const T* dy, const T* rdy, T* rdx,
                                double* rdgain, double* rdshift) {
  using Column = NormColumn<T>;
  using V = typename Column::V;
  constexpr int D = Column::D;
  const double share = 1.0 / double(a.size);
  const NormRows rows(a);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t c = 0; c < cols; c += D) {
      const Column column(x + c, rows, o, cols, a.eps);
      const auto of = [&](const T* p, NormFeature f) {
        return p != nullptr ? load_double<T, D>(p + f.row * cols + c) : V{};
      };
      const auto adjoint = [&](NormFeature f) {
        return gain != nullptr ? of(dy, f) * double(gain[f.gain]) : of(dy, f);
      };
      const auto adjoint_tangent = [&](NormFeature f) {
        V v = gain != nullptr ? of(rdy, f) * double(gain[f.gain]) : of(rdy, f);
        if (rgain != nullptr) v += double(rgain[f.gain]) * of(dy, f);
        return v;
      };
      V rx_mean{}, z_rx{};
      rows.each(o, [&](NormFeature f) {
        rx_mean += share * of(rx, f);
        z_rx += share * of(rx, f) * column.z(f);
      });
      const auto rz = [&](NormFeature f) {
        return column.scale * (of(rx, f) - rx_mean - column.z(f) * z_rx);
      };
      V g_mean{}, g_z{}, rg_mean{}, cross{};
      rows.each(o, [&](NormFeature f) {
        const V g = adjoint(f), rg = adjoint_tangent(f), z = column.z(f), r = rz(f);
        g_mean += share * g;
        g_z += share * g * z;
        rg_mean += share * rg;
        cross += share * (rg * z + g * r);
        if (rdgain != nullptr) rdgain[f.gain] += total<D>(of(rdy, f) * z + of(dy, f) * r);
        if (rdshift != nullptr) rdshift[f.gain] += total<D>(of(rdy, f));
      });
      if (rdx == nullptr) continue;
      const V rs = -column.scale * column.scale * z_rx;
      rows.each(o, [&](NormFeature f) {
        const V z = column.z(f);
        const V u = adjoint(f) - g_mean - z * g_z;
        const V v = adjoint_tangent(f) - rg_mean - rz(f) * g_z - z * cross;
        add_narrow<T, D>(rdx + f.row * cols + c, rs * u + column.scale * v);
      });
    }
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
