// Passes over a few columns of an orthonormal basis Q (rows, stride). Only included by kernels.inl.
// Elements are T, all sums are double.
namespace pylandscape::cpu {
namespace {

template <typename T, int Rows>
inline void dot_rows(int64_t cols, const T* q, int64_t stride, const T* w, double* sums) {
  constexpr int D = kLanes<double>;
  Vec<double, D> acc[Rows] = {};
  int64_t c = 0;
  for (; c + D <= cols; c += D) {
    const Vec<double, D> v = load_double<T, D>(w + c);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) acc[r] += v * load_double<T, D>(q + r * stride + c);
  }
  for (int r = 0; r < Rows; ++r) {
    double sum = 0;
    for (int l = 0; l < D; ++l) sum += acc[r][l];
    for (int64_t i = c; i < cols; ++i) sum += double(q[r * stride + i]) * double(w[i]);
    sums[r] += sum;
  }
}

// sums (rows,) += Q w.
template <typename T>
void basis_dots(int64_t rows, int64_t cols, const T* q, int64_t stride, const T* w, double* sums) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) dot_rows<T, 8>(cols, q + r * stride, stride, w, sums + r);
  for (; r + 2 <= rows; r += 2) dot_rows<T, 2>(cols, q + r * stride, stride, w, sums + r);
  for (; r < rows; ++r) dot_rows<T, 1>(cols, q + r * stride, stride, w, sums + r);
}

// w = from - Q^T c, rounded once; from may be w itself. `norm`: += ||w||^2 as rounded.
template <typename T, typename From>
inline void subtract(int64_t rows, int64_t cols, const T* q, int64_t stride, const double* c,
                     const From* from, T* w, double* norm) {
  constexpr int D = kLanes<double>, B = 8;  // B vectors of w in registers
  Vec<double, D> squares{};
  int64_t i = 0;
  for (; i + B * D <= cols; i += B * D) {
    Vec<double, D> v[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) v[b] = load_double<From, D>(from + i + b * D);
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
        v[b] -= c[r] * load_double<T, D>(q + r * stride + i + b * D);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      if constexpr (sizeof(T) == sizeof(double)) {
        store<T, D>(w + i + b * D, v[b]);
      } else {
        const auto narrow = __builtin_convertvector(v[b], Vec<T, D>);
        store<T, D>(w + i + b * D, narrow);
        v[b] = __builtin_convertvector(narrow, Vec<double, D>);
      }
      squares += v[b] * v[b];
    }
  }
  double sum = 0;
  for (int l = 0; l < D; ++l) sum += squares[l];
  for (; i < cols; ++i) {
    double v = double(from[i]);
    for (int64_t r = 0; r < rows; ++r) v -= c[r] * double(q[r * stride + i]);
    w[i] = static_cast<T>(v);
    sum += double(w[i]) * double(w[i]);
  }
  *norm += sum;
}

template <typename T>
void basis_subtract(int64_t rows, int64_t cols, const T* q, int64_t stride, const double* c, T* w,
                    double* norm) {
  subtract<T, T>(rows, cols, q, stride, c, w, w, norm);
}
template <typename T>
void basis_subtract_from(int64_t rows, int64_t cols, const T* q, int64_t stride, const double* c,
                         const double* from, T* w, double* norm) {
  subtract<T, double>(rows, cols, q, stride, c, from, w, norm);
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
