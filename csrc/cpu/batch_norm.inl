// Statistics of a batch, of one tile. Only included by kernels.inl.
namespace pylandscape::cpu {
namespace {

// Sum of the first `count` elements of x minus `centre`, or of their squares.
template <typename T, bool Squares>
inline double row_moment(int64_t count, const T* x, double centre) {
  constexpr int D = kLanes<double>;
  Vec<double, D> sum{};
  int64_t i = 0;
  for (; i + D <= count; i += D) {
    const Vec<double, D> v = load_double<T, D>(x + i) - centre;
    sum += Squares ? v * v : v;
  }
  double total = 0;
  for (int l = 0; l < D; ++l) total += sum[l];
  for (; i < count; ++i) {
    const double v = double(x[i]) - centre;
    total += Squares ? v * v : v;
  }
  return total;
}

// Two passes over a tile that stays in cache: no cancellation, however large the mean.
template <typename T>
void channel_moments(int64_t pixels, int64_t channels, int64_t cols, int64_t samples, const T* x,
                     double* mean, double* squares) {
  for (int64_t c = 0; c < channels; ++c) mean[c] = squares[c] = 0;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c)
      mean[c] += row_moment<T, false>(samples, x + (p * channels + c) * cols, 0);
  for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<double>(pixels * samples);
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c)
      squares[c] += row_moment<T, true>(samples, x + (p * channels + c) * cols, mean[c]);
}

}  // namespace
}  // namespace pylandscape::cpu
