// Attention, sample by sample, by blocks of queries. Only included by kernels.inl.
//
// Keys and values of a head are packed once for all of its queries, of one vector of samples at a
// time; then the scores of a block of queries are computed, become weights, and meet the values while
// they lie in the cache. Every element is what matmul, softmax and matmul give one after the other.
//
// A block leaves out the keys that none of its queries sees. Their weights are 0, so each would add
// 0 * v to a sum: NaN where v is not finite, else nothing but a zero with a sign. These zeros are
// summed for all queries together (`rest`) and added at the end of each sum, where they give what
// they would have given one by one.
namespace pylandscape::cpu {
namespace {

// All of y (k, n), panels of one depth after those of the other.
template <typename T>
void pack_depths(const MatmulArgs& a, int64_t cols, const T* y, T* to) {
  const PanelSplit depths(a.k, kMatmulDepth), widths(a.n, kMatmulCols);
  for (int64_t d = 0; d < depths.panels; ++d) {
    const int64_t from = depths.first(d), depth = depths.rows(d);
    matmul_pack(widths, 0, widths.panels, depth, a.yk * cols, a.yj * cols, y + from * a.yk * cols,
                to);
    to += depth * a.n * kLanes<T>;
  }
}

// z (rows, n) = scale x y of packed y (k, n), of which the first `seen` of k take part, and `last`
// panels of n; rest (depths, n) vectors or null.
template <typename T>
void multiply_packed(const MatmulArgs& a, const MatmulStrides& s, int64_t rows, int64_t seen,
                     int64_t last, T scale, const T* x, const T* packed, const T* rest, T* z) {
  constexpr int N = kLanes<T>;
  const PanelSplit depths(a.k, kMatmulDepth), widths(a.n, kMatmulCols), heights(rows, kMatmulRows);
  for (int64_t d = 0; d < depths.panels; ++d) {
    const int64_t from = depths.first(d), depth = depths.rows(d);
    const int64_t left = seen > from ? seen - from : 0, k = left < depth ? left : depth;
    const int64_t together = kMatmulPart / (depth * kMatmulCols);
    for (int64_t w = 0; w < last; w += together)
      matmul_panels<T>(s, heights, widths, w, w + together < last ? w + together : last, depth, k,
                       scale, d > 0, x + from * s.xk, packed + depth * widths.first(w) * N,
                       rest != nullptr ? rest + d * a.n * N : nullptr, z);
    packed += depth * a.n * N;
  }
}

// The sums of 0 * v over the keys first .. last - 1, added to rest (depths, n). Sums of zeros do not
// depend on their order.
template <typename T>
void add_zeros(const MatmulArgs& a, int64_t cols, int64_t first, int64_t last, const T* y,
               T* rest) {
  constexpr int N = kLanes<T>;
  const PanelSplit depths(a.k, kMatmulDepth);
  for (int64_t d = 0; d < depths.panels; ++d, rest += a.n * N) {
    const int64_t from = depths.first(d), end = from + depths.rows(d);
    for (int64_t i = first > from ? first : from; i < (last < end ? last : end); ++i)
      for (int64_t j = 0; j < a.n; ++j)
        store<T, N>(rest + j * N, load<T, N>(rest + j * N) +
                                      T(0) * load<T, N>(y + (i * a.yk + j * a.yj) * cols));
  }
}

template <typename T>
void attention(const AttentionArgs& a, int64_t cols, T scale, T second, const T* queries,
               const T* keys, const T* values, T* room, T* z) {
  constexpr int N = kLanes<T>;
  const MatmulArgs &s = a.scores, &v = a.values;
  const int64_t stride = (s.n | 1) * N;  // of scores: rows in different sets of the cache
  const int64_t parts = PanelSplit(s.n, kMatmulDepth).panels;
  T *packed_keys = room, *packed_values = packed_keys + s.k * s.n * N;
  T *rest = packed_values + v.k * v.n * N, *scores = rest + parts * v.n * N;
  const MatmulStrides to_scores{s.xi * cols, s.xk * cols, stride, N};
  const MatmulStrides from_scores{stride, N, v.zi * cols, v.zj * cols};
  const PanelSplit widths(s.n, kMatmulCols);
  for (int64_t lane = 0; lane < cols; lane += N) {
    int64_t held_keys = -1, held_values = -1;  // whose are packed: several heads may share them
    for (int64_t o = 0; o < s.outer; ++o) {
      if (s.y_outer[o] != held_keys) pack_depths(s, cols, keys + s.y_outer[o] * cols + lane, packed_keys);
      const T* of = values + v.y_outer[o] * cols + lane;
      if (v.y_outer[o] != held_values) pack_depths(v, cols, of, packed_values);
      held_keys = s.y_outer[o], held_values = v.y_outer[o];
      const int64_t* seen = a.seen != nullptr ? a.seen + s.z_outer[o] / s.n : nullptr;
      int64_t left_out = s.n + 1;  // the first key whose zeros `rest` holds
      for (int64_t first = (s.m - 1) / kQueries * kQueries; first >= 0; first -= kQueries) {
        const int64_t rows = s.m - first < kQueries ? s.m - first : kQueries;
        int64_t most = seen != nullptr ? 0 : s.n;
        for (int64_t i = 0; i < rows && seen != nullptr; ++i)
          most = seen[first + i] > most ? seen[first + i] : most;
        int64_t last = widths.panels;
        while (widths.first(last - 1) >= most) --last;
        multiply_packed<T>(s, to_scores, rows, s.k, last, scale,
                           queries + (s.x_outer[o] + first * s.xi) * cols + lane, packed_keys,
                           nullptr, scores);
        for (int64_t i = 0; i < rows; ++i) {
          T* row = scores + i * stride;
          if (a.affine) unary<T>(Unary::kAffine, a.a, a.b, most * N, row, row);
          const int64_t own = seen != nullptr ? seen[first + i] : s.n;
          softmax<T>(false, 1, own, 1, N, row, row);
          for (int64_t j = own; j < most; ++j) store<T, N>(row + j * N, Vec<T>{});
        }
        if (seen != nullptr) {
          if (most > left_out || left_out > s.n) {
            for (int64_t j = 0; j < parts * v.n; ++j) store<T, N>(rest + j * N, -Vec<T>{});
            left_out = s.n;
          }
          add_zeros(v, cols, most, left_out, of, rest);
          left_out = most;
        }
        multiply_packed<T>(v, from_scores, rows, most, PanelSplit(v.n, kMatmulCols).panels, second,
                           scores, packed_values, seen != nullptr ? rest : nullptr,
                           z + (v.z_outer[o] + first * v.zi) * cols + lane);
      }
    }
  }
}

}  // namespace
}  // namespace pylandscape::cpu
