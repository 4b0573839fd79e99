// Derivatives of layer norm and group norm. Only included by kernels.inl, after group_norm.inl, whose
// pieces and statistics these are.
//
// Of one column of one group: z = (x - mean) s with s = 1 / sqrt(variance + eps); y = gain z + shift.
// Along v: rz = s (rx - <rx> - z <z rx>) and rs = -s^2 <z rx>; <.> is the mean over the group.
// Backward, with g = gain dy: dx = s u, u = g - <g> - z <g z>.
//
// Elements are computed in T; sums over a group are in T over a block of rows, then in double.
namespace pylandscape::cpu {
namespace {

constexpr int64_t kNormSums = 256;                // groups times columns of a piece at most
constexpr int64_t kNormBytes = int64_t{1} << 15;  // of a piece's values, where groups are short

// f(piece, first group, offset of its first element) for pieces that cover all groups and columns.
template <typename T, typename F>
inline void each_norm_piece(const NormArgs& a, int64_t cols, F f) {
  constexpr int64_t N = kLanes<T>;
  const int64_t width = a.size / a.pixels;
  int64_t fit = kNormSums;
  if (a.pixels == 1) {
    fit = kNormBytes / (a.size * static_cast<int64_t>(sizeof(T))) / N * N;
    fit = fit < 2 * N ? 2 * N : fit > kNormSums ? kNormSums : fit;
  }
  const int64_t most = cols < fit ? cols : fit, together = fit / most;
  for (int64_t g = 0; g < a.outer; g += together)
    for (int64_t c = 0; c < cols; c += most)
      f(NormPiece{a.pixels, a.outer * width, a.outer - g < together ? a.outer - g : together, width,
                  cols, cols - c < most ? cols - c : most},
        g, g * width * cols + c);
}

// Means over the groups of a piece, `Count` of them, in T.
template <typename T, int Count>
struct NormMeans {
  static constexpr int N = kLanes<T>;
  alignas(64) T mean[Count][kNormSums];

  // row(at, gain row, i, sums) adds what a vector of a row has to the Count sums of vector i.
  template <typename F>
  NormMeans(const NormPiece& a, F row) {
    alignas(64) double sums[Count][kNormSums];
    const int64_t size = a.size();
    for (int s = 0; s < Count; ++s)
      for (int64_t i = 0; i < size; ++i) sums[s][i] = 0;
    a.blocks([&](int64_t g, int64_t from, int64_t to, int64_t w, int64_t end) {
      for (int64_t c = 0; c < a.count; c += N) {
        const int64_t i = g * a.count + c;
        Vec<T> part[Count] = {};
        for (int64_t p = from; p < to; ++p)
          for (int64_t r = w; r < end; ++r) row(a.at(g, p, r) + c, g, r, i, part);
#pragma GCC unroll 8
        for (int s = 0; s < Count; ++s) add_wide<T>(sums[s] + i, part[s]);
      }
    });
    const double share = 1.0 / double(a.pixels * a.width);
    for (int s = 0; s < Count; ++s)
      for (int64_t i = 0; i < size; ++i) mean[s][i] = static_cast<T>(sums[s][i] * share);
  }
  Vec<T> operator()(int s, int64_t i) const { return load<T, N>(mean[s] + i); }
};

template <typename T>
inline double lane_sum(Vec<T> v) {
  alignas(64) T out[kLanes<T>];
  store<T, kLanes<T>>(out, v);
  double sum = 0;
  for (int l = 0; l < kLanes<T>; ++l) sum += double(out[l]);
  return sum;
}

// dgain and dshift (either may be null): the sums over columns, and over whatever shares a gain, of
// the two that row(at, i, gain, shift) adds. `channels`: every group has gains of its own.
template <typename T, typename F>
inline void norm_gains(const NormPiece& a, bool channels, double* dgain, double* dshift, F row) {
  constexpr int N = kLanes<T>;
  if (dgain == nullptr && dshift == nullptr) return;
  Vec<T> gains[kNormBlock], shifts[kNormBlock];
  const auto clear = [&] {
    for (int64_t r = 0; r < kNormBlock; ++r) gains[r] = shifts[r] = Vec<T>{};
  };
  const auto block = [&](int64_t g, int64_t from, int64_t to, int64_t w, int64_t end) {
    for (int64_t p = from; p < to; ++p)
      for (int64_t r = w; r < end; ++r) {
        Vec<T> gain = gains[r - w], shift = shifts[r - w];
        const int64_t at = a.at(g, p, r);
        for (int64_t c = 0; c < a.count; c += N) row(at + c, g * a.count + c, gain, shift);
        gains[r - w] = gain, shifts[r - w] = shift;
      }
  };
  const auto flush = [&](int64_t at, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      if (dgain != nullptr) dgain[at + r] += lane_sum<T>(gains[r]);
      if (dshift != nullptr) dshift[at + r] += lane_sum<T>(shifts[r]);
    }
  };
  for (int64_t p = 0; p < a.pixels; p += a.together())
    for (int64_t w = 0; w < a.width; w += kNormBlock) {
      const int64_t rows = a.width - w < kNormBlock ? a.width - w : kNormBlock;
      if (!channels) clear();
      for (int64_t g = 0; g < a.groups; ++g) {
        if (channels) clear();
        a.each_block(g, p, w, block);
        if (channels) flush(g * a.width + w, rows);
      }
      if (!channels) flush(w, rows);
    }
}

// write(at, gain row, i) for every vector of every row.
template <typename T, typename F>
inline void each_norm_row(const NormPiece& a, F write) {
  for (int64_t p = 0; p < a.pixels; ++p)
    for (int64_t g = 0; g < a.groups; ++g)
      for (int64_t r = 0; r < a.width; ++r)
        for (int64_t c = 0; c < a.count; c += kLanes<T>)
          write(a.at(g, p, r) + c, g, r, g * a.count + c);
}

// What the passes read of one piece. Gains are those of its first group; null is one, or zero for
// what moves.
template <typename T>
struct NormInputs {
  static constexpr int N = kLanes<T>;
  const NormPiece& a;
  const NormColumns<T> columns;
  bool channels;
  const T *x, *gain, *rgain, *rshift;

  NormInputs(const NormPiece& piece, const NormArgs& args, const T* values, const T* gains,
             const T* rgains = nullptr, const T* rshifts = nullptr)
      : a(piece), columns(piece, args.eps, values), channels(args.channels), x(values),
        gain(gains), rgain(rgains), rshift(rshifts) {}
  Vec<T> z(int64_t at, int64_t i) const {
    return (load<T, N>(x + at) - load<T, N>(columns.first + i)) * load<T, N>(columns.scale + i) +
           load<T, N>(columns.centre + i);
  }
  Vec<T> scale(int64_t i) const { return load<T, N>(columns.scale + i); }
  int64_t gain_of(int64_t g, int64_t r) const { return channels ? g * a.width + r : r; }
};

template <typename T>
inline const T* from(const T* p, int64_t by) {
  return p == nullptr ? nullptr : p + by;
}
inline double* from(double* p, int64_t by) { return p == nullptr ? nullptr : p + by; }

template <typename T>
void layer_norm_tangent(const NormArgs& args, int64_t cols, const T* gain, const T* x, const T* rx,
                        const T* rgain, const T* rshift, T* ry) {
  constexpr int N = kLanes<T>;
  each_norm_piece<T>(args, cols, [&](const NormPiece& a, int64_t group, int64_t start) {
    const int64_t g0 = args.channels ? group * a.width : 0;
    const NormInputs<T> in(a, args, x + start, from(gain, g0), from(rgain, g0), from(rshift, g0));
    const T* r = from(rx, start);
    T* out = ry + start;
    const NormMeans<T, 2> means(
        a, [&](int64_t at, int64_t, int64_t, int64_t i, Vec<T>(&sums)[2]) {
          if (r == nullptr) return;
          const Vec<T> v = load<T, N>(r + at);
          sums[0] += v, sums[1] += v * in.z(at, i);
        });
    each_norm_row<T>(a, [&](int64_t at, int64_t g, int64_t w, int64_t i) {
      const int64_t k = in.gain_of(g, w);
      const Vec<T> z = in.z(at, i);
      Vec<T> v{};
      if (r != nullptr) v = in.scale(i) * (load<T, N>(r + at) - means(0, i) - z * means(1, i));
      if (in.gain != nullptr) v *= in.gain[k];
      if (in.rgain != nullptr) v += in.rgain[k] * z;
      if (in.rshift != nullptr) v += in.rshift[k];
      store<T, N>(out + at, v);
    });
  });
}

template <typename T>
void layer_norm_reverse(const NormArgs& args, int64_t cols, const T* gain, const T* x, const T* dy,
                        T* dx, double* dgain, double* dshift) {
  constexpr int N = kLanes<T>;
  each_norm_piece<T>(args, cols, [&](const NormPiece& a, int64_t group, int64_t start) {
    const int64_t g0 = args.channels ? group * a.width : 0;
    const NormInputs<T> in(a, args, x + start, from(gain, g0));
    const T* d = dy + start;
    norm_gains<T>(a, args.channels, from(dgain, g0), from(dshift, g0),
                  [&](int64_t at, int64_t i, Vec<T>& gains, Vec<T>& shifts) {
                    const Vec<T> v = load<T, N>(d + at);
                    gains += v * in.z(at, i), shifts += v;
                  });
    if (dx == nullptr) return;
    T* out = dx + start;
    const auto adjoint = [&](int64_t at, int64_t g, int64_t r) {
      const Vec<T> v = load<T, N>(d + at);
      return in.gain != nullptr ? v * in.gain[in.gain_of(g, r)] : v;
    };
    const NormMeans<T, 2> means(
        a, [&](int64_t at, int64_t g, int64_t r, int64_t i, Vec<T>(&sums)[2]) {
          const Vec<T> v = adjoint(at, g, r);
          sums[0] += v, sums[1] += v * in.z(at, i);
        });
    each_norm_row<T>(a, [&](int64_t at, int64_t g, int64_t r, int64_t i) {
      const Vec<T> u = adjoint(at, g, r) - means(0, i) - in.z(at, i) * means(1, i);
      store<T, N>(out + at, load<T, N>(out + at) + in.scale(i) * u);
    });
  });
}

// rdx = rs u + s (rg - <rg> - rz <g z> - z (<rg z> + <g rz>)), rg = rgain dy + gain rdy.
template <typename T>
void layer_norm_reverse_tangent(const NormArgs& args, int64_t cols, const T* gain, const T* rgain,
                                const T* x, const T* rx, const T* dy, const T* rdy, T* rdx,
                                double* rdgain, double* rdshift) {
  constexpr int N = kLanes<T>;
  each_norm_piece<T>(args, cols, [&](const NormPiece& a, int64_t group, int64_t start) {
    const int64_t g0 = args.channels ? group * a.width : 0;
    const NormInputs<T> in(a, args, x + start, from(gain, g0), from(rgain, g0));
    const T *r = from(rx, start), *d = dy + start, *rd = rdy + start;
    const auto adjoint = [&](int64_t at, int64_t k) {
      const Vec<T> v = load<T, N>(d + at);
      return in.gain != nullptr ? v * in.gain[k] : v;
    };
    const auto adjoint_tangent = [&](int64_t at, int64_t k) {
      Vec<T> v = load<T, N>(rd + at);
      if (in.gain != nullptr) v *= in.gain[k];
      if (in.rgain != nullptr) v += in.rgain[k] * load<T, N>(d + at);
      return v;
    };
    const NormMeans<T, 2> moved(
        a, [&](int64_t at, int64_t, int64_t, int64_t i, Vec<T>(&sums)[2]) {
          if (r == nullptr) return;
          const Vec<T> v = load<T, N>(r + at);
          sums[0] += v, sums[1] += v * in.z(at, i);
        });
    const auto rz = [&](int64_t at, int64_t i, Vec<T> z) {
      if (r == nullptr) return Vec<T>{};
      return in.scale(i) * (load<T, N>(r + at) - moved(0, i) - z * moved(1, i));
    };
    norm_gains<T>(a, args.channels, from(rdgain, g0), from(rdshift, g0),
                  [&](int64_t at, int64_t i, Vec<T>& gains, Vec<T>& shifts) {
                    const Vec<T> v = load<T, N>(rd + at), z = in.z(at, i);
                    gains += v * z + load<T, N>(d + at) * rz(at, i, z), shifts += v;
                  });
    if (rdx == nullptr) return;
    T* out = rdx + start;
    const NormMeans<T, 4> means(  // <g>, <g z>, <rg>, <rg z + g rz>
        a, [&](int64_t at, int64_t g, int64_t w, int64_t i, Vec<T>(&sums)[4]) {
          const int64_t k = in.gain_of(g, w);
          const Vec<T> v = adjoint(at, k), rv = adjoint_tangent(at, k), z = in.z(at, i);
          sums[0] += v, sums[1] += v * z, sums[2] += rv;
          sums[3] += rv * z + v * rz(at, i, z);
        });
    each_norm_row<T>(a, [&](int64_t at, int64_t g, int64_t w, int64_t i) {
      const int64_t k = in.gain_of(g, w);
      const Vec<T> z = in.z(at, i), s = in.scale(i);
      const Vec<T> u = adjoint(at, k) - means(0, i) - z * means(1, i);
      const Vec<T> ru = adjoint_tangent(at, k) - means(2, i) - rz(at, i, z) * means(1, i) -
                        z * means(3, i);
      store<T, N>(out + at, load<T, N>(out + at) + (s * ru - s * s * moved(1, i) * u));
    });
  });
}

}  // namespace
}  // namespace pylandscape::cpu
