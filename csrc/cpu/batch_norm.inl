// Batch norm by the statistics of the batch, of one tile. Only included by kernels.inl, after
// group_norm.inl.
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

// Two sums over pixels and columns for each of up to kSummed channels, whose rows are neighbours: in
// T over a few rows, then in double.
constexpr int64_t kSummed = 64;
constexpr int64_t kSummedVectors = 32;  // of a channel, in T

template <typename T>
struct ChannelSums {
  static constexpr int N = kLanes<T>;
  int64_t count;
  alignas(64) T narrow[2][kSummed * N];
  alignas(64) double wide[2][kSummed * N];

  // row(p, c, first, second) adds what pixel p has to the sums of channel c.
  template <typename F>
  ChannelSums(int64_t pixels, int64_t channels, int64_t cols, F row) : count(channels) {
    for (int64_t i = 0; i < count * N; ++i)
      narrow[0][i] = narrow[1][i] = 0, wide[0][i] = wide[1][i] = 0;
    const int64_t fit = kSummedVectors * N / cols, together = fit < 1 ? 1 : fit;
    for (int64_t from = 0; from < pixels; from += together) {
      const int64_t to = pixels - from < together ? pixels : from + together;
      for (int64_t p = from; p < to; ++p)
        for (int64_t c = 0; c < count; ++c) {
          Vec<T> first = load<T, N>(narrow[0] + c * N), second = load<T, N>(narrow[1] + c * N);
          row(p, c, first, second);
          store<T, N>(narrow[0] + c * N, first);
          store<T, N>(narrow[1] + c * N, second);
        }
      for (int s = 0; s < 2; ++s)
        for (int64_t c = 0; c < count; ++c) {
          add_wide<T>(wide[s] + c * N, load<T, N>(narrow[s] + c * N));
          store<T, N>(narrow[s] + c * N, Vec<T>{});
        }
    }
  }
  double total(int which, int64_t channel) const {
    double sum = 0;
    for (int l = 0; l < N; ++l) sum += wide[which][channel * N + l];
    return sum;
  }
};

// Around the mean of the first pixel, which is one of many of the same spread: what is subtracted at
// the end is then small.
template <typename T>
void batch_moments(int64_t pixels, int64_t channels, int64_t cols, int64_t samples, const T* x,
                   double* mean, double* squares) {
  constexpr int N = kLanes<T>;
  const int64_t whole = samples / N * N;
  alignas(64) T ones[N];
  for (int64_t l = 0; l < N; ++l) ones[l] = whole + l < samples ? T(1) : T(0);
  const double size = static_cast<double>(pixels * samples);
  for (int64_t c0 = 0; c0 < channels; c0 += kSummed) {
    const int64_t count = channels - c0 < kSummed ? channels - c0 : kSummed;
    T around[kSummed];
    for (int64_t c = 0; c < count; ++c)
      around[c] = static_cast<T>(row_moment<T, false>(samples, x + (c0 + c) * cols, 0) /
                                 static_cast<double>(samples));
    const ChannelSums<T> sums(
        pixels, count, cols, [&](int64_t p, int64_t c, Vec<T>& first, Vec<T>& second) {
          const T* row = x + (p * channels + c0 + c) * cols;
          for (int64_t i = 0; i < whole; i += N) {
            const Vec<T> d = load<T, N>(row + i) - around[c];
            first += d, second += d * d;
          }
          if (whole == samples) return;
          const Vec<T> d = (load<T, N>(row + whole) - around[c]) * load<T, N>(ones);
          first += d, second += d * d;
        });
    for (int64_t c = 0; c < count; ++c) {
      const double off = sums.total(0, c) / size;
      mean[c0 + c] = double(around[c]) + off;
      const double left = sums.total(1, c) - size * off * off;
      squares[c0 + c] = left < 0 ? 0 : left;
    }
  }
}

// dy where relu let something through.
template <typename T>
inline Vec<T> let_through(const OwnNorm<T>& a, int64_t c, Vec<T> x, Vec<T> dy) {
  return !a.relu ? dy : (x * a.scale[c] + a.shift[c] > 0 ? dy : Vec<T>{});
}

template <typename T>
void own_norm_sums(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                   const OwnNorm<T>& a, const T* x, const T* dy, double* sums) {
  constexpr int N = kLanes<T>;
  const int64_t whole = samples / N * N;
  alignas(64) T ones[N];
  for (int64_t l = 0; l < N; ++l) ones[l] = whole + l < samples ? T(1) : T(0);
  for (int64_t c0 = 0; c0 < channels; c0 += kSummed) {
    const int64_t count = channels - c0 < kSummed ? channels - c0 : kSummed;
    const ChannelSums<T> found(
        pixels, count, cols, [&](int64_t p, int64_t c, Vec<T>& first, Vec<T>& second) {
          const int64_t at = (p * channels + c0 + c) * cols;
          const auto take = [&](int64_t i, Vec<T> r) {
            const Vec<T> v = load<T, N>(x + i), d = let_through(a, c0 + c, v, r);
            first += d, second += d * (v * a.inverse[c0 + c] + a.centre[c0 + c]);
          };
          for (int64_t i = at; i < at + whole; i += N) take(i, load<T, N>(dy + i));
          if (whole < samples) take(at + whole, load<T, N>(dy + at + whole) * load<T, N>(ones));
        });
    for (int64_t c = 0; c < count; ++c) {
      sums[c0 + c] += found.total(0, c);
      sums[channels + c0 + c] += found.total(1, c);
    }
  }
}

template <typename T>
void own_norm_reverse(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                      const OwnNorm<T>& a, const T* x, const T* dy, bool add, T* dx) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (p * channels + c) * cols;
      for (int64_t i = at; i < at + cols; i += N) {
        const Vec<T> v = load<T, N>(x + i), d = let_through(a, c, v, load<T, N>(dy + i));
        const Vec<T> found = d * a.scale[c] + (v * a.slope[c] + a.offset[c]);
        store<T, N>(dx + i, add ? load<T, N>(dx + i) + found : found);
      }
      for (int64_t i = at + samples; i < at + cols; ++i) dx[i] = T(0);
    }
}

template <typename T>
void own_norm_tangent(int64_t pixels, int64_t channels, int64_t cols, const OwnNorm<T>& a,
                      const OwnNormTangent<T>& r, const T* x, const T* rx, T* ry) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (p * channels + c) * cols;
      for (int64_t i = at; i < at + cols; i += N) {
        const Vec<T> v = load<T, N>(x + i);
        Vec<T> found = v * r.slope[c] + r.offset[c];
        if (rx != nullptr) found += load<T, N>(rx + i) * a.scale[c];
        store<T, N>(ry + i, let_through(a, c, v, found));
      }
    }
}

template <typename T>
void own_norm_tangent_sums(int64_t pixels, int64_t channels, int64_t cols, const OwnNorm<T>& a,
                           const OwnNormTangent<T>& r, const T* x, const T* rx, const T* dy,
                           const T* rdy, double* sums) {
  constexpr int N = kLanes<T>;
  for (int64_t c0 = 0; c0 < channels; c0 += kSummed) {
    const int64_t count = channels - c0 < kSummed ? channels - c0 : kSummed;
    const ChannelSums<T> found(
        pixels, count, cols, [&](int64_t p, int64_t k, Vec<T>& first, Vec<T>& second) {
          const int64_t c = c0 + k, at = (p * channels + c) * cols;
          for (int64_t i = at; i < at + cols; i += N) {
            const Vec<T> v = load<T, N>(x + i);
            const Vec<T> rd = let_through(a, c, v, load<T, N>(rdy + i));
            first += rd, second += rd * (v * a.inverse[c] + a.centre[c]);
            if (rx == nullptr) continue;
            const Vec<T> rz =
                load<T, N>(rx + i) * a.inverse[c] + (v * r.along[c] + r.around[c]);
            second += let_through(a, c, v, load<T, N>(dy + i)) * rz;
          }
        });
    for (int64_t c = 0; c < count; ++c) {
      sums[c0 + c] += found.total(0, c);
      sums[channels + c0 + c] += found.total(1, c);
    }
  }
}

template <typename T>
void own_norm_reverse_tangent(int64_t pixels, int64_t channels, int64_t cols, int64_t samples,
                              const OwnNorm<T>& a, const OwnNormTangent<T>& r, const T* x,
                              const T* rx, const T* dy, const T* rdy, bool add, T* rdx) {
  constexpr int N = kLanes<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (p * channels + c) * cols;
      for (int64_t i = at; i < at + cols; i += N) {
        const Vec<T> v = load<T, N>(x + i);
        const Vec<T> through = let_through(
            a, c, v, load<T, N>(rdy + i) * a.scale[c] + load<T, N>(dy + i) * r.bend[c]);
        const Vec<T> found =
            through + (load<T, N>(rx + i) * a.slope[c] + (v * r.curve[c] + r.base[c]));
        store<T, N>(rdx + i, add ? load<T, N>(rdx + i) + found : found);
      }
      for (int64_t i = at + samples; i < at + cols; ++i) rdx[i] = T(0);
    }
}

}  // namespace
}  // namespace pylandscape::cpu
