// Matrix products of the program. Only included by kernels.inl.
//
// W is packed in panels of up to kRows rows, each panel (k, rows), so that the micro-kernel reads W
// and x forward only. A micro-tile is Rows x (Vectors * lanes) of y in registers; every element of
// y is one chain of fused multiply-adds over k in order (with one spill per kDepth), whatever the
// tile that it falls into.
namespace pylandscape::cpu {
namespace {

constexpr int kRows = kVectorBytes == 64 ? 12 : kVectorBytes == 32 ? 6 : 4;
constexpr int64_t kDepth = 512;  // 512 x 12 floats of a panel: half of the L1 cache
// Rows of x that are fetched ahead: they lie far apart, which the processor does not foresee. Into the
// first-level cache as many as rows of its sets leave room for, into the second-level cache enough to
// hide the way from memory.
template <typename T>
constexpr int64_t kAhead = 64 / sizeof(T);
constexpr int64_t kFarAhead = 48;
constexpr int kLine = 64;  // bytes

constexpr int vectors_for(int rows) {
  const int budget = kRegisters == 32 ? 24 : 12;
  const int fit = budget / rows;
  return fit >= 8 ? 8 : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// Rows as a constant: the loop over them is unrolled.
template <typename T, int Rows>
inline void pack_panel(int64_t rows, int64_t k, const T* __restrict__ src, T* __restrict__ dst) {
  if constexpr (Rows > 0) {
    if (rows != Rows) return pack_panel<T, Rows - 1>(rows, k, src, dst);
    for (int64_t i = 0; i < k; ++i)
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) dst[i * Rows + r] = src[r * k + i];
  }
}

template <typename T>
void pack(int64_t m, int64_t k, const T* src, T* dst) {
  const PanelSplit split(m, kRows);
  for (int64_t p = 0; p < split.panels; ++p) {
    const int64_t first = split.first(p);
    pack_panel<T, kRows>(split.rows(p), k, src + first * k, dst + first * k);
  }
}

enum class Start { kZero, kBias, kPartial };

template <typename T, int Rows, int Vectors>
inline void micro(int64_t k, const T* __restrict__ w, const T* __restrict__ x, int64_t cols,
                  const T* __restrict__ bias, Start start, bool relu, T* __restrict__ y) {
  constexpr int N = kLanes<T>;
  Vec<T> acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      acc[r][v] = start == Start::kPartial ? load<T, N>(y + r * cols + v * N)
                  : start == Start::kBias  ? splat<T, N>(bias[r])
                                           : Vec<T>{};
  for (int64_t i = 0; i < k; ++i) {
    Vec<T> xv[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      xv[v] = load<T, N>(x + i * cols + v * N);
      if (v * kVectorBytes % kLine == 0) {
        __builtin_prefetch(x + (i + kAhead<T>) * cols + v * N);
        __builtin_prefetch(x + (i + kFarAhead) * cols + v * N, 0, 2);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const T wr = w[i * Rows + r];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[r][v] += wr * xv[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      store<T, N>(y + r * cols + v * N, relu ? vmax(acc[r][v], Vec<T>{}) : acc[r][v]);
}

// One panel of `rows` rows over all columns.
template <typename T, int Rows>
inline void panel(int64_t rows, int64_t cols, int64_t k, const T* w, const T* x, const T* bias,
                  Start start, bool relu, T* y) {
  if constexpr (Rows > 0) {
    if (rows != Rows) return panel<T, Rows - 1>(rows, cols, k, w, x, bias, start, relu, y);
    constexpr int N = kLanes<T>, V = vectors_for(Rows);
    int64_t c = 0;
    for (; c + V * N <= cols; c += V * N)
      micro<T, Rows, V>(k, w, x + c, cols, bias, start, relu, y + c);
    if constexpr (V > 4)
      for (; c + 4 * N <= cols; c += 4 * N)
        micro<T, Rows, 4>(k, w, x + c, cols, bias, start, relu, y + c);
    if constexpr (V > 2)
      for (; c + 2 * N <= cols; c += 2 * N)
        micro<T, Rows, 2>(k, w, x + c, cols, bias, start, relu, y + c);
    for (; c < cols; c += N) micro<T, Rows, 1>(k, w, x + c, cols, bias, start, relu, y + c);
  }
}

template <typename T>
inline void product(int64_t m, int64_t cols, int64_t k, const T* packed, const T* x, const T* bias,
                    Start first, bool relu, T* y) {
  const PanelSplit split(m, kRows);
  int64_t i = 0;
  do {  // once also for k = 0: y = bias
    const int64_t depth = k - i < kDepth ? k - i : kDepth;
    const bool last = i + depth == k;
    for (int64_t p = 0; p < split.panels; ++p) {
      const int64_t row = split.first(p), rows = split.rows(p);
      panel<T, kRows>(rows, cols, depth, packed + row * k + i * rows, x + i * cols,
                      bias != nullptr ? bias + row : nullptr, i == 0 ? first : Start::kPartial,
                      relu && last, y + row * cols);
    }
    i += depth;
  } while (i < k);
}

template <typename T>
void linear(int64_t m, int64_t cols, int64_t k, const T* packed, const T* x, const T* bias,
            bool relu, T* y) {
  product(m, cols, k, packed, x, bias, bias != nullptr ? Start::kBias : Start::kZero, relu, y);
}

template <typename T>
void linear_add(int64_t m, int64_t cols, int64_t k, const T* packed, const T* x, T* y) {
  product<T>(m, cols, k, packed, x, nullptr, Start::kPartial, false, y);
}

// y row = z[0] + c[0] z[1] + ... for a count known at compile time (-1: not known).
template <typename T, int Count>
inline void combine_row(int64_t cols, int64_t count, const T* const* z, int64_t at, const T* c,
                        T bias, bool relu, T* y) {
  constexpr int N = kLanes<T>;
  const int64_t terms = Count >= 0 ? Count : count;
  for (int64_t i = 0; i < cols; i += N) {
    Vec<T> v = load<T, N>(z[0] + at + i);
    for (int64_t j = 0; j < terms; ++j) v += c[j] * load<T, N>(z[1 + j] + at + i);
    v += bias;
    store<T, N>(y + i, relu ? vmax(v, Vec<T>{}) : v);
  }
}

template <typename T>
void combine(int64_t m, int64_t cols, int64_t count, const T* const* z, const T* c, const T* bias,
             bool relu, T* y) {
  for (int64_t r = 0; r < m; ++r) {
    const T b = bias != nullptr ? bias[r] : T(0);
    const int64_t at = r * cols;
    if (count == 1) combine_row<T, 1>(cols, count, z, at, c, b, relu, y + at);
    else if (count == 2) combine_row<T, 2>(cols, count, z, at, c, b, relu, y + at);
    else combine_row<T, -1>(cols, count, z, at, c, b, relu, y + at);
  }
}

template <typename T>
void perturb(int64_t n, int64_t count, const T* base, const T* const* d, const T* c, T* out) {
  constexpr int N = kLanes<T>;
  for (int64_t i = 0; i < n; i += N) {
    Vec<T> v = load<T, N>(base + i);
    for (int64_t j = 0; j < count; ++j) v += c[j] * load<T, N>(d[j] + i);
    store<T, N>(out + i, v);
  }
}

template <typename T>
void perturb_lanes(int64_t n, int64_t count, const T* base, const T* const* d, const T* c, T* out) {
  constexpr int N = kLanes<T>;
  for (int64_t i = 0; i < n; ++i) {
    Vec<T> v = splat<T, N>(base[i]);
    for (int64_t j = 0; j < count; ++j) v += load<T, N>(c + j * N) * d[j][i];
    store<T, N>(out + i * N, v);
  }
}

template <typename T>
void to_lanes(int64_t n, const T* const* rows, T* out) {
  constexpr int N = kLanes<T>;
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    Vec<T> x[N];
#pragma GCC unroll 16
    for (int l = 0; l < N; ++l) x[l] = load<T>(rows[l] + i);
    transpose<T>(x);
#pragma GCC unroll 16
    for (int l = 0; l < N; ++l) store<T, N>(out + (i + l) * N, x[l]);
  }
  for (; i < n; ++i) {  // lane by lane in a register: stores of single lanes would delay the load
    Vec<T> x{};
#pragma GCC unroll 16
    for (int l = 0; l < N; ++l) x[l] = rows[l][i];
    store<T, N>(out + i * N, x);
  }
}

template <typename T>
void linear_lanes(int64_t m, int64_t samples, int64_t k, const T* w, const T* x, const T* bias,
                  bool relu, T* y) {
  constexpr int N = kLanes<T>, kBlock = 4;
  const auto block = [&](auto width, int64_t row, int64_t s) {
    constexpr int W = decltype(width)::value;
    Vec<T> acc[W];
    for (int j = 0; j < W; ++j) acc[j] = bias != nullptr ? load<T, N>(bias + row * N) : Vec<T>{};
    for (int64_t i = 0; i < k; ++i) {
      const Vec<T> wv = load<T, N>(w + (row * k + i) * N);
      for (int j = 0; j < W; ++j) acc[j] += wv * load<T, N>(x + (i * samples + s + j) * N);
    }
    for (int j = 0; j < W; ++j)
      store<T, N>(y + (row * samples + s + j) * N, relu ? vmax(acc[j], Vec<T>{}) : acc[j]);
  };
  for (int64_t row = 0; row < m; ++row) {
    int64_t s = 0;
    for (; s + kBlock <= samples; s += kBlock)
      block(std::integral_constant<int, kBlock>{}, row, s);
    for (; s < samples; ++s) block(std::integral_constant<int, 1>{}, row, s);
  }
}

}  // namespace
}  // namespace pylandscape::cpu
