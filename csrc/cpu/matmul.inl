// Products of two values, sample by sample. Only included by kernels.inl.
//
// Both operands change from lane to lane, so a micro-tile is Rows x Cols vectors of the result and
// one step of its sum loads Rows + Cols vectors for Rows * Cols multiply-adds. The rows of y lie
// far apart (heads of a fused projection, other samples between them); a part of y is copied into
// one piece of memory first and then meets every row of x. Every element of z is one chain of
// multiply-adds per kMatmulDepth of k, in order.
namespace pylandscape::cpu {
namespace {

constexpr int kMatmulRows = kRegisters == 32 ? 4 : kVectorBytes == 32 ? 3 : 2;
constexpr int kMatmulCols = kRegisters == 32 ? 6 : 4;
constexpr int64_t kMatmulPart = 512;  // vectors of y copied together: 32 KiB with AVX-512

struct MatmulStrides {  // in elements
  int64_t xi, xk, zi, zj;
};

// z (Rows, Cols) = or += scale (x y + rest); y packed (k, Cols) vectors, rest (Cols,) vectors or null.
template <typename T, int Rows, int Cols>
inline void matmul_micro(const MatmulStrides& s, int64_t k, T scale, bool add, const T* x,
                         const T* y, const T* rest, T* z) {
  constexpr int N = kLanes<T>;
  Vec<T> acc[Rows][Cols];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < Cols; ++c) acc[r][c] = Vec<T>{};
  for (int64_t i = 0; i < k; ++i, x += s.xk, y += Cols * N) {
    Vec<T> xv[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) xv[r] = load<T, N>(x + r * s.xi);
#pragma GCC unroll 8
    for (int c = 0; c < Cols; ++c) {
      const Vec<T> yv = load<T, N>(y + c * N);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) acc[r][c] += xv[r] * yv;
    }
  }
  if (rest != nullptr)
#pragma GCC unroll 8
    for (int c = 0; c < Cols; ++c)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) acc[r][c] += load<T, N>(rest + c * N);
  // One element after the other: where z is an adjoint, several may be the same row.
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < Cols; ++c) {
      T* to = z + r * s.zi + c * s.zj;
      const Vec<T> v = scale * acc[r][c];
      store<T, N>(to, add ? load<T, N>(to) + v : v);
    }
}

template <typename T, int Rows, int Cols>
inline void matmul_cols(int cols, const MatmulStrides& s, int64_t k, T scale, bool add, const T* x,
                        const T* y, const T* rest, T* z) {
  if constexpr (Cols > 0) {
    if (cols != Cols) return matmul_cols<T, Rows, Cols - 1>(cols, s, k, scale, add, x, y, rest, z);
    matmul_micro<T, Rows, Cols>(s, k, scale, add, x, y, rest, z);
  }
}
template <typename T, int Rows>
inline void matmul_rows(int rows, int cols, const MatmulStrides& s, int64_t k, T scale, bool add,
                        const T* x, const T* y, const T* rest, T* z) {
  if constexpr (Rows > 0) {
    if (rows != Rows) return matmul_rows<T, Rows - 1>(rows, cols, s, k, scale, add, x, y, rest, z);
    matmul_cols<T, Rows, kMatmulCols>(cols, s, k, scale, add, x, y, rest, z);
  }
}

// Panels first .. last - 1 of y, each `depth` rows of k, of `lane` of its columns.
template <typename T>
inline void matmul_pack(const PanelSplit& widths, int64_t first, int64_t last, int64_t depth,
                        int64_t yk, int64_t yj, const T* y, T* to) {
  constexpr int N = kLanes<T>;
  for (int64_t p = first; p < last; ++p) {
    const T* rows = y + widths.first(p) * yj;
    const int64_t width = widths.rows(p);
    for (int64_t i = 0; i < depth; ++i)
      for (int64_t j = 0; j < width; ++j, to += N) store<T, N>(to, load<T, N>(rows + i * yk + j * yj));
  }
}

// All rows of x by these panels, of whose `depth` rows the first k count. Never inlined: whoever
// calls it gets the same bits.
template <typename T>
[[gnu::noinline]] void matmul_panels(const MatmulStrides& s, const PanelSplit& heights,
                                     const PanelSplit& widths, int64_t first, int64_t last,
                                     int64_t depth, int64_t k, T scale, bool add, const T* x,
                                     const T* panels, const T* rest, T* z) {
  constexpr int N = kLanes<T>;
  for (int64_t h = 0; h < heights.panels; ++h) {
    const int64_t i = heights.first(h);
    const T* panel = panels;
    for (int64_t p = first; p < last; ++p) {
      const int64_t width = widths.rows(p), j = widths.first(p);
      matmul_rows<T, kMatmulRows>(static_cast<int>(heights.rows(h)), static_cast<int>(width), s, k,
                                  scale, add, x + i * s.xi, panel,
                                  rest != nullptr ? rest + j * N : nullptr,
                                  z + i * s.zi + j * s.zj);
      panel += depth * width * N;
    }
  }
}

template <typename T>
void matmul(const MatmulArgs& a, int64_t cols, T scale, bool add, const T* x, const T* y, T* z) {
  constexpr int N = kLanes<T>;
  alignas(64) T part[kMatmulPart * N];
  const MatmulStrides s{a.xi * cols, a.xk * cols, a.zi * cols, a.zj * cols};
  const PanelSplit depths(a.k, kMatmulDepth), widths(a.n, kMatmulCols), heights(a.m, kMatmulRows);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t lane = 0; lane < cols; lane += N) {
      const T* xo = x + a.x_outer[o] * cols + lane;
      const T* yo = y + a.y_outer[o] * cols + lane;
      T* zo = z + a.z_outer[o] * cols + lane;
      for (int64_t d = 0; d < depths.panels; ++d) {
        const int64_t from = depths.first(d), depth = depths.rows(d);
        const int64_t together = kMatmulPart / (depth * kMatmulCols);
        for (int64_t w = 0; w < widths.panels; w += together) {
          const int64_t last = w + together < widths.panels ? w + together : widths.panels;
          matmul_pack(widths, w, last, depth, a.yk * cols, a.yj * cols, yo + from * a.yk * cols, part);
          matmul_panels<T>(s, heights, widths, w, last, depth, depth, scale, add || d > 0,
                           xo + from * s.xk, part, nullptr, zo);
        }
      }
    }
}

}  // namespace
}  // namespace pylandscape::cpu
