// Passes over a few columns of an orthonormal basis Q (rows, stride). Only included by kernels.inl.
// Sums over columns are double, of runs of at most kRun products in T.
namespace pylandscape::cpu {
namespace {

// Rows are taken kTogether at a time: a row's next columns follow at once, and meanwhile the same
// columns of the next rows are fetched, which no hardware would guess (rows may be far apart).
constexpr int kTogether = 8;
// Columns whose products are added in T before the sum goes on in double.
constexpr int64_t kRun = 512;

template <typename T>
inline void fetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

template <typename T, int Rows>
inline void dot_rows(int64_t cols, const T* q, int64_t stride, const T* w, const T* next,
                     double* sums) {
  constexpr int N = kLanes<T>;
  double total[Rows] = {};
  for (int64_t first = 0; first < cols; first += kRun) {
    const int64_t last = first + kRun < cols ? first + kRun : cols;
    Vec<T> acc[Rows] = {};
    int64_t c = first;
    for (; c + N <= last; c += N) {
      const Vec<T> v = load<T, N>(w + c);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        acc[r] += v * load<T, N>(q + r * stride + c);
        if (next != nullptr) fetch(next + r * stride + c);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      double sum = 0;
      for (int l = 0; l < N; ++l) sum += double(acc[r][l]);
      for (int64_t i = c; i < last; ++i) sum += double(q[r * stride + i]) * double(w[i]);
      total[r] += sum;
    }
  }
  for (int r = 0; r < Rows; ++r) sums[r] += total[r];
}

// sums (rows,) += Q w.
template <typename T>
void basis_dots(int64_t rows, int64_t cols, const T* q, int64_t stride, const T* w, double* sums) {
  constexpr int R = kTogether;
  int64_t r = 0;
  for (; r + R <= rows; r += R) {
    // After the last rows come the first ones again, further on.
    const T* next = r + 2 * R <= rows ? q + (r + R) * stride : q + cols;
    dot_rows<T, R>(cols, q + r * stride, stride, w, next, sums + r);
  }
  for (; r + 2 <= rows; r += 2)
    dot_rows<T, 2>(cols, q + r * stride, stride, w, nullptr, sums + r);
  for (; r < rows; ++r) dot_rows<T, 1>(cols, q + r * stride, stride, w, nullptr, sums + r);
}

template <typename T, int Rows>
inline void subtract_rows(int64_t cols, const T* q, int64_t stride, const double* c, const T* next,
                          T* w) {
  constexpr int N = kLanes<T>;
  T factor[Rows];
  for (int r = 0; r < Rows; ++r) factor[r] = static_cast<T>(c[r]);
  int64_t i = 0;
  for (; i + N <= cols; i += N) {
    Vec<T> v = load<T, N>(w + i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      v -= factor[r] * load<T, N>(q + r * stride + i);
      if (next != nullptr) fetch(next + r * stride + i);
    }
    store<T, N>(w + i, v);
  }
  for (; i < cols; ++i)
    for (int r = 0; r < Rows; ++r) w[i] -= factor[r] * q[r * stride + i];
}

// w <- w - Q^T c; norm += the squares of the new w.
template <typename T>
void basis_subtract(int64_t rows, int64_t cols, const T* q, int64_t stride, const double* c, T* w,
                    double* norm) {
  constexpr int R = kTogether, D = kLanes<double>;
  int64_t r = 0;
  for (; r + R <= rows; r += R) {
    const T* next = r + 2 * R <= rows ? q + (r + R) * stride : nullptr;
    subtract_rows<T, R>(cols, q + r * stride, stride, c + r, next, w);
  }
  for (; r + 2 <= rows; r += 2)
    subtract_rows<T, 2>(cols, q + r * stride, stride, c + r, nullptr, w);
  for (; r < rows; ++r) subtract_rows<T, 1>(cols, q + r * stride, stride, c + r, nullptr, w);
  Vec<double, D> squares{};
  int64_t i = 0;
  for (; i + D <= cols; i += D) {
    const Vec<double, D> v = load_double<T, D>(w + i);
    squares += v * v;
  }
  double sum = 0;
  for (int l = 0; l < D; ++l) sum += squares[l];
  for (; i < cols; ++i) sum += double(w[i]) * double(w[i]);
  *norm += sum;
}

// w = from - Q^T c in double, rounded once; norm += the squares of w as rounded.
template <typename T>
void basis_subtract_from(int64_t rows, int64_t cols, const T* q, int64_t stride, const double* c,
                         const double* from, T* w, double* norm) {
  constexpr int D = kLanes<double>, B = 4;
  Vec<double, D> squares{};
  int64_t i = 0;
  for (; i + B * D <= cols; i += B * D) {
    Vec<double, D> v[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) v[b] = load<double, D>(from + i + b * D);
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b)
        v[b] -= c[r] * load_double<T, D>(q + r * stride + i + b * D);
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      for (int l = 0; l < D; ++l) w[i + b * D + l] = static_cast<T>(v[b][l]);
      const Vec<double, D> rounded = load_double<T, D>(w + i + b * D);
      squares += rounded * rounded;
    }
  }
  double sum = 0;
  for (int l = 0; l < D; ++l) sum += squares[l];
  for (; i < cols; ++i) {
    double v = from[i];
    for (int64_t r = 0; r < rows; ++r) v -= c[r] * double(q[r * stride + i]);
    w[i] = static_cast<T>(v);
    sum += double(w[i]) * double(w[i]);
  }
  *norm += sum;
}

template <typename T>
void scale(int64_t cols, double factor, T* w) {
  for (int64_t c = 0; c < cols; ++c) w[c] = static_cast<T>(factor * double(w[c]));
}

template <typename T>
double dot_double(int64_t cols, const T* q, const double* p) {
  constexpr int D = kLanes<double>, B = 4;
  Vec<double, D> acc[B] = {};
  int64_t c = 0;
  for (; c + B * D <= cols; c += B * D)
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b)
      acc[b] += load_double<T, D>(q + c + b * D) * load<double, D>(p + c + b * D);
  double sum = 0;
  for (int b = 0; b < B; ++b)
    for (int l = 0; l < D; ++l) sum += acc[b][l];
  for (; c < cols; ++c) sum += double(q[c]) * p[c];
  return sum;
}

}  // namespace
}  // namespace pylandscape::cpu
