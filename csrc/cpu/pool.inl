// Pooling over windows of pixels. Only included by kernels.inl.
//
// A pixel is `channels` consecutive rows, so all of its channels and columns are one contiguous run
// of elements: an output pixel is an elementwise maximum or sum of the runs in its window. Windows
// are lists of pixels, so that padding (not listed), dilation, ceil_mode, adaptive windows and
// means over dimensions are the same loop.
namespace pylandscape::cpu {
namespace {

constexpr int kPoolVectors = 4;   // of one run, kept in registers through a window
constexpr int64_t kSumBlock = 16;  // taps summed before they join the total: short error chains

// f(window's first tap, taps, factor, output offset, width) over all outputs and pieces of their
// runs; width is kPoolVectors or 1, as a constant.
template <typename T, typename F>
inline void each_piece(const PoolArgs& a, int64_t cols, F f) {
  constexpr int N = kLanes<T>, V = kPoolVectors;
  const int64_t run = a.channels * cols;
  for (int64_t o = 0; o < a.outputs; ++o) {
    const int64_t* taps = a.index + a.bounds[o];
    const int64_t count = a.bounds[o + 1] - a.bounds[o];
    const T factor = a.factor != nullptr && !a.per_tap ? static_cast<T>(a.factor[o]) : T(1);
    int64_t i = 0;
    for (; i + V * N <= run; i += V * N)
      f(std::integral_constant<int, V>{}, taps, count, factor, o * run, i);
    for (; i < run; i += N)
      f(std::integral_constant<int, 1>{}, taps, count, factor, o * run, i);
  }
}

// The larger, or NaN where either is: only there (and for zeros of both signs, whose maximum is -0)
// do the two selections differ, and then one of them is the NaN, whose bits survive the or.
template <typename T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
  const Vec<T> one = a > b ? a : b, other = b > a ? b : a;
  return (Vec<T>)((IVec<T>)one | (IVec<T>)other);
}

// Where `v` takes the place of the maximum so far: the first of equal values stays, NaN wins.
template <typename T>
inline IVec<T> replaces(Vec<T> v, Vec<T> best) {
  return (v > best) | (v != v);
}

// Where the derivatives of a window's maximum go: to the first tap that reaches it, or evenly to
// all that do.
template <typename T, int V>
class Winners {
 public:
  // x: the first tap's piece would be at x + taps[0] * run.
  Winners(bool even, const int64_t* taps, int64_t count, int64_t run, const T* x)
      : even_(even), taps_(taps), run_(run), x_(x) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      best_[v] = at(0, v);
      tap_[v] = IVec<T>{};
      share[v] = Vec<T>{} + T(1);
    }
    for (int64_t k = 1; k < count; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Vec<T> found = at(k, v);
        const IVec<T> better = replaces<T>(found, best_[v]);
        best_[v] = better ? found : best_[v];
        tap_[v] = better ? number(k) : tap_[v];
      }
    if (!even) return;
    Vec<T> ties[V] = {};
    for (int64_t k = 0; k < count; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) ties[v] += (*this)(k, v) ? Vec<T>{} + T(1) : Vec<T>{};
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) share[v] = T(1) / ties[v];
  }
  // Whether tap k gets a share.
  IVec<T> operator()(int64_t k, int v) const {
    return even_ ? at(k, v) == best_[v] : tap_[v] == number(k);
  }
  Vec<T> share[V];

 private:
  Vec<T> at(int64_t k, int v) const {
    return load<T, kLanes<T>>(x_ + taps_[k] * run_ + v * kLanes<T>);
  }
  static IVec<T> number(int64_t k) { return static_cast<typename IntOf<T>::type>(k) - IVec<T>{}; }

  bool even_;
  const int64_t* taps_;
  int64_t run_;
  const T* x_;
  Vec<T> best_[V];
  IVec<T> tap_[V];
};

template <typename T>
void pool_max(const PoolArgs& a, int64_t cols, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  const int64_t run = a.channels * cols;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T, int64_t to,
                             int64_t i) {
    constexpr int V = width;
    Vec<T> best[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) best[v] = load<T, N>(x + taps[0] * run + i + v * N);
    for (int64_t k = 1; k < count; ++k) {
      const T* from = x + taps[k] * run + i;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) best[v] = larger<T>(best[v], load<T, N>(from + v * N));
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T, N>(y + to + i + v * N, best[v]);
  });
}

template <typename T>
void pool_sum(const PoolArgs& a, int64_t cols, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  const int64_t run = a.channels * cols;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T factor, int64_t to,
                             int64_t i) {
    constexpr int V = width;
    Vec<T> total[V] = {};
    for (int64_t first = 0; first < count; first += kSumBlock) {
      const int64_t last = first + kSumBlock < count ? first + kSumBlock : count;
      Vec<T> sum[V] = {};
      for (int64_t k = first; k < last; ++k) {
        const T* from = x + taps[k] * run + i;
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[v] += load<T, N>(from + v * N);
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[v] += sum[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T, N>(y + to + i + v * N, total[v] * factor);
  });
}

// Every tap times a factor of its own.
template <typename T>
void weighted_sum(const PoolArgs& a, int64_t cols, const T* x, T* y) {
  constexpr int N = kLanes<T>;
  const int64_t run = a.channels * cols;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T, int64_t to,
                             int64_t i) {
    constexpr int V = width;
    const double* weights = a.factor + (taps - a.index);
    Vec<T> sum[V] = {};
    for (int64_t k = 0; k < count; ++k) {
      const T* from = x + taps[k] * run + i;
      const T weight = static_cast<T>(weights[k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[v] += load<T, N>(from + v * N) * weight;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T, N>(y + to + i + v * N, sum[v]);
  });
}

inline bool weighted(const PoolArgs& a) { return a.factor != nullptr && a.per_tap; }

template <typename T>
void pool(const PoolArgs& a, int64_t cols, const T* x, T* y) {
  if (weighted(a)) return weighted_sum(a, cols, x, y);
  if (a.mode == Pool::kSum) return pool_sum(a, cols, x, y);
  pool_max(a, cols, x, y);
}

template <typename T>
void pool_tangent(const PoolArgs& a, int64_t cols, const T* x, const T* rx, T* ry) {
  constexpr int N = kLanes<T>;
  if (weighted(a)) return weighted_sum(a, cols, rx, ry);
  if (a.mode == Pool::kSum) return pool_sum(a, cols, rx, ry);
  const int64_t run = a.channels * cols;
  const bool even = a.mode == Pool::kMaxEven;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T, int64_t to,
                             int64_t i) {
    constexpr int V = width;
    const Winners<T, V> wins(even, taps, count, run, x + i);
    Vec<T> tangent[V] = {};
    for (int64_t k = 0; k < count; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Vec<T> r = load<T, N>(rx + taps[k] * run + i + v * N) * wins.share[v];
        tangent[v] += wins(k, v) ? r : Vec<T>{};
      }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T, N>(ry + to + i + v * N, tangent[v]);
  });
}

template <typename T>
void sum_reverse(const PoolArgs& a, int64_t cols, const T* dy, T* dx) {
  constexpr int N = kLanes<T>;
  const int64_t run = a.channels * cols;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T factor, int64_t at,
                             int64_t i) {
    constexpr int V = width;
    Vec<T> d[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) d[v] = load<T, N>(dy + at + i + v * N) * factor;
    for (int64_t k = 0; k < count; ++k) {
      T* to = dx + taps[k] * run + i;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store<T, N>(to + v * N, load<T, N>(to + v * N) + d[v]);
    }
  });
}

template <typename T>
void weighted_reverse(const PoolArgs& a, int64_t cols, const T* dy, T* dx) {
  constexpr int N = kLanes<T>;
  const int64_t run = a.channels * cols;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T, int64_t at,
                             int64_t i) {
    constexpr int V = width;
    const double* weights = a.factor + (taps - a.index);
    for (int64_t k = 0; k < count; ++k) {
      T* to = dx + taps[k] * run + i;
      const T weight = static_cast<T>(weights[k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        store<T, N>(to + v * N, load<T, N>(to + v * N) + load<T, N>(dy + at + i + v * N) * weight);
    }
  });
}

template <typename T>
void pool_reverse(const PoolArgs& a, int64_t cols, const T* x, const T* dy, T* dx) {
  constexpr int N = kLanes<T>;
  if (weighted(a)) return weighted_reverse(a, cols, dy, dx);
  if (a.mode == Pool::kSum) return sum_reverse(a, cols, dy, dx);
  const int64_t run = a.channels * cols;
  const bool even = a.mode == Pool::kMaxEven;
  each_piece<T>(a, cols, [=](auto width, const int64_t* taps, int64_t count, T, int64_t at,
                             int64_t i) {
    constexpr int V = width;
    const Winners<T, V> wins(even, taps, count, run, x + i);
    Vec<T> d[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) d[v] = load<T, N>(dy + at + i + v * N) * wins.share[v];
    for (int64_t k = 0; k < count; ++k) {
      T* to = dx + taps[k] * run + i;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        store<T, N>(to + v * N, load<T, N>(to + v * N) + (wins(k, v) ? d[v] : Vec<T>{}));
    }
  });
}

}  // namespace
}  // namespace pylandscape::cpu
