// Kernels of sequences: embedding and the recurrent cells. Only included by kernels.inl.
//
// A cell's activations are computed anew in every pass: a few polynomials beside the products of the
// step, for a quarter of the memory.
namespace pylandscape::cpu {
namespace {

template <typename T>
void embedding(int64_t size, int64_t cols, int64_t padding, const T* table, const T* ids, T* y) {
  constexpr int N = kLanes<T>;
  for (int64_t c = 0; c < cols; c += N) {
    const T* rows[N];
    for (int l = 0; l < N; ++l) {
      const int64_t id = static_cast<int64_t>(ids[c + l]);
      rows[l] = id == padding ? nullptr : table + id * size;
    }
    int64_t f = 0;
    for (; f + N <= size; f += N) {
      Vec<T> block[N];
#pragma GCC unroll 16
      for (int l = 0; l < N; ++l) block[l] = rows[l] != nullptr ? load<T>(rows[l] + f) : Vec<T>{};
      transpose<T>(block);
#pragma GCC unroll 16
      for (int l = 0; l < N; ++l) store<T, N>(y + (f + l) * cols + c, block[l]);
    }
    for (; f < size; ++f)
      for (int l = 0; l < N; ++l) y[f * cols + c + l] = rows[l] != nullptr ? rows[l][f] : T(0);
  }
}

template <typename T>
void embedding_add(int64_t size, int64_t cols, int64_t samples, int64_t padding, const T* ids,
                   const T* dy, double* table) {
  for (int64_t c = 0; c < samples; ++c) {
    const int64_t id = static_cast<int64_t>(ids[c]);
    if (id == padding) continue;
    for (int64_t f = 0; f < size; ++f) table[id * size + f] += double(dy[f * cols + c]);
  }
}

// Values of one vector of units, gates apart by `stride` elements; zero where the pointer is null.
template <typename T, int Gates>
struct Gate {
  Vec<T> x[Gates] = {}, h[Gates] = {}, state{};
  Gate(CellInputs<const T> in, int64_t stride, int64_t at) {
#pragma GCC unroll 4
    for (int g = 0; g < Gates; ++g) {
      if (in.x != nullptr) x[g] = load<T>(in.x + g * stride + at);
      if (in.h != nullptr) h[g] = load<T>(in.h + g * stride + at);
    }
    if (in.state != nullptr) state = load<T>(in.state + at);
  }
};

template <typename T>
inline void add_to(T* p, int64_t at, Vec<T> v) {
  if (p != nullptr) store<T, kLanes<T>>(p + at, load<T>(p + at) + v);
}

template <typename T>
struct Quotient {
  Vec<T> above, below;
};
template <typename V, typename T = std::remove_reference_t<decltype(V{}[0])>>
inline Quotient<T> sigmoid_of(V x) {
  const V e = exp_nonpositive<T, kLanes<T>>(-vabs(x));  // in (0, 1]
  return {x < 0 ? e : splat<T>(T(1)), e + T(1)};
}
template <typename V, typename T = std::remove_reference_t<decltype(V{}[0])>>
inline Quotient<T> tanh_of(V x) {
  const V magnitude = vabs(x);
  const V clamped = magnitude > Float<T>::kTanhMax ? splat<T>(Float<T>::kTanhMax) : magnitude;
  const V em = expm1<T, kLanes<T>>(clamped + clamped);
  return {x < 0 ? -em : em, em + T(2)};
}

template <typename T>
struct Lstm {
  using V = Vec<T>;
  static constexpr int kGates = 4;
  V i, f, g, o, last, c, tau;
  explicit Lstm(const Gate<T, 4>& in) {
    constexpr int N = kLanes<T>;
    i = sigmoid<T, N>(in.x[0] + in.h[0]), f = sigmoid<T, N>(in.x[1] + in.h[1]);
    g = tanh<T, N>(in.x[2] + in.h[2]), o = sigmoid<T, N>(in.x[3] + in.h[3]);
    last = in.state;
    c = f * last + i * g;
    tau = tanh<T, N>(c);
  }
  // The step alone, with two divisions instead of five: every sigmoid and tanh is a quotient.
  static void value(const Gate<T, 4>& in, T* y, int64_t stride, int64_t at) {
    const Quotient<T> i = sigmoid_of(in.x[0] + in.h[0]), f = sigmoid_of(in.x[1] + in.h[1]);
    const Quotient<T> g = tanh_of(in.x[2] + in.h[2]), o = sigmoid_of(in.x[3] + in.h[3]);
    const V below = i.below * g.below;
    const V c = (f.above * in.state * below + i.above * g.above * f.below) / (f.below * below);
    const Quotient<T> tau = tanh_of(c);
    store<T, kLanes<T>>(y + at, o.above * tau.above / (o.below * tau.below));
    store<T, kLanes<T>>(y + stride + at, c);
  }

  // Slopes of the gates, and the tangents that follow from those of the inputs.
  struct Tangent {
    V i, f, g, o, last, c, tau;
    Tangent(const Lstm& a, const Gate<T, 4>& r) {
      i = a.i * (T(1) - a.i) * (r.x[0] + r.h[0]), f = a.f * (T(1) - a.f) * (r.x[1] + r.h[1]);
      g = (T(1) - a.g * a.g) * (r.x[2] + r.h[2]), o = a.o * (T(1) - a.o) * (r.x[3] + r.h[3]);
      last = r.state;
      c = f * a.last + a.f * last + i * a.g + a.i * g;
      tau = (T(1) - a.tau * a.tau) * c;
    }
  };
  void tangent(const Tangent& r, T* ry, int64_t stride, int64_t at) const {
    store<T, kLanes<T>>(ry + at, r.o * tau + o * r.tau);
    store<T, kLanes<T>>(ry + stride + at, r.c);
  }

  // d: adjoints of the gates before their activations (one for x and h), of the last c.
  void reverse(const T* dy, int64_t stride, int64_t at, CellInputs<T> d) const {
    const V dh = load<T>(dy + at), dc = load<T>(dy + stride + at) + dh * o * (T(1) - tau * tau);
    const V gates[4] = {dc * g * i * (T(1) - i), dc * last * f * (T(1) - f),
                        dc * i * (T(1) - g * g), dh * tau * o * (T(1) - o)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      add_to(d.x, k * stride + at, gates[k]);
      add_to(d.h, k * stride + at, gates[k]);
    }
    add_to(d.state, at, dc * f);
  }

  void reverse_tangent(const Tangent& r, const T* dy, const T* rdy, int64_t stride, int64_t at,
                       CellInputs<T> rd) const {
    const V slope = T(1) - tau * tau, rslope = T(-2) * tau * r.tau;
    const V dh = load<T>(dy + at), rdh = load<T>(rdy + at);
    const V dc = load<T>(dy + stride + at) + dh * o * slope;
    const V rdc = load<T>(rdy + stride + at) + rdh * o * slope + dh * (r.o * slope + o * rslope);
    const V si = T(1) - i, sf = T(1) - f, sg = T(1) - g * g, so = T(1) - o;
    // (s (1 - s))' = (1 - 2 s) s', for each sigmoid s.
    const V gates[4] = {
        rdc * g * i * si + dc * (r.g * i * si + g * (si - i) * r.i),
        rdc * last * f * sf + dc * (r.last * f * sf + last * (sf - f) * r.f),
        rdc * i * sg + dc * (r.i * sg - T(2) * i * g * r.g),
        rdh * tau * o * so + dh * (r.tau * o * so + tau * (so - o) * r.o)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      add_to(rd.x, k * stride + at, gates[k]);
      add_to(rd.h, k * stride + at, gates[k]);
    }
    add_to(rd.state, at, rdc * f + dc * r.f);
  }
};

template <typename T>
struct Gru {
  using V = Vec<T>;
  static constexpr int kGates = 3;
  V r, z, n, hn, last;  // hn: the product of the hidden state, which r gates
  explicit Gru(const Gate<T, 3>& in) {
    constexpr int N = kLanes<T>;
    r = sigmoid<T, N>(in.x[0] + in.h[0]), z = sigmoid<T, N>(in.x[1] + in.h[1]);
    hn = in.h[2];
    n = tanh<T, N>(in.x[2] + r * hn);
    last = in.state;
  }
  static void value(const Gate<T, 3>& in, T* y, int64_t, int64_t at) {
    const Gru a(in);
    store<T, kLanes<T>>(y + at, a.n + a.z * (a.last - a.n));
  }

  struct Tangent {
    V r, z, n, hn, last;
    Tangent(const Gru& a, const Gate<T, 3>& in) {
      r = a.r * (T(1) - a.r) * (in.x[0] + in.h[0]), z = a.z * (T(1) - a.z) * (in.x[1] + in.h[1]);
      hn = in.h[2];
      n = (T(1) - a.n * a.n) * (in.x[2] + r * a.hn + a.r * hn);
      last = in.state;
    }
  };
  void tangent(const Tangent& t, T* ry, int64_t, int64_t at) const {
    store<T, kLanes<T>>(ry + at, t.n + t.z * (last - n) + z * (t.last - t.n));
  }

  void reverse(const T* dy, int64_t stride, int64_t at, CellInputs<T> d) const {
    const V dh = load<T>(dy + at);
    const V dn = dh * (T(1) - z) * (T(1) - n * n);
    add(d, stride, at, dn * hn * r * (T(1) - r), dh * (last - n) * z * (T(1) - z), dn, dn * r,
        dh * z);
  }

  void reverse_tangent(const Tangent& t, const T* dy, const T* rdy, int64_t stride, int64_t at,
                       CellInputs<T> rd) const {
    const V dh = load<T>(dy + at), rdh = load<T>(rdy + at);
    const V sr = T(1) - r, sz = T(1) - z, sn = T(1) - n * n, gap = last - n;
    const V dn = dh * sz * sn;
    const V rdn = rdh * sz * sn - dh * (t.z * sn + T(2) * sz * n * t.n);
    const V rdr = rdn * hn * r * sr + dn * (t.hn * r * sr + hn * (sr - r) * t.r);
    const V rdz =
        rdh * gap * z * sz + dh * ((t.last - t.n) * z * sz + gap * (sz - z) * t.z);
    add(rd, stride, at, rdr, rdz, rdn, rdn * r + dn * t.r, rdh * z + dh * t.z);
  }

 private:
  static void add(CellInputs<T> d, int64_t stride, int64_t at, V dr, V dz, V dxn, V dhn, V dlast) {
    add_to(d.x, at, dr), add_to(d.x, stride + at, dz), add_to(d.x, 2 * stride + at, dxn);
    add_to(d.h, at, dr), add_to(d.h, stride + at, dz), add_to(d.h, 2 * stride + at, dhn);
    add_to(d.state, at, dlast);
  }
};

// f(cell type, elements of a gate, offset) for every vector of units.
template <typename T, typename F>
inline void each_unit(Cell kind, int64_t hidden, int64_t cols, F f) {
  const int64_t stride = hidden * cols;
  for (int64_t at = 0; at < stride && kind == Cell::kLstm; at += kLanes<T>)
    f(static_cast<Lstm<T>*>(nullptr), stride, at);
  for (int64_t at = 0; at < stride && kind == Cell::kGru; at += kLanes<T>)
    f(static_cast<Gru<T>*>(nullptr), stride, at);
}
template <typename P>
using Pointee = std::remove_pointer_t<P>;

template <typename T>
void cell(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in, T* y) {
  each_unit<T>(kind, hidden, cols, [&](auto type, int64_t stride, int64_t at) {
    using C = Pointee<decltype(type)>;
    C::value(Gate<T, C::kGates>(in, stride, at), y, stride, at);
  });
}

template <typename T>
void cell_tangent(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in,
                  CellInputs<const T> r, T* ry) {
  each_unit<T>(kind, hidden, cols, [&](auto type, int64_t stride, int64_t at) {
    using C = Pointee<decltype(type)>;
    using G = Gate<T, C::kGates>;
    const C c(G(in, stride, at));
    c.tangent(typename C::Tangent(c, G(r, stride, at)), ry, stride, at);
  });
}

template <typename T>
void cell_reverse(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in, const T* dy,
                  CellInputs<T> d) {
  each_unit<T>(kind, hidden, cols, [&](auto type, int64_t stride, int64_t at) {
    using C = Pointee<decltype(type)>;
    C(Gate<T, C::kGates>(in, stride, at)).reverse(dy, stride, at, d);
  });
}

template <typename T>
void cell_reverse_tangent(Cell kind, int64_t hidden, int64_t cols, CellInputs<const T> in,
                          CellInputs<const T> r, const T* dy, const T* rdy, CellInputs<T> rd) {
  each_unit<T>(kind, hidden, cols, [&](auto type, int64_t stride, int64_t at) {
    using C = Pointee<decltype(type)>;
    using G = Gate<T, C::kGates>;
    const C c(G(in, stride, at));
    c.reverse_tangent(typename C::Tangent(c, G(r, stride, at)), dy, rdy, stride, at, rd);
  });
}

}  // namespace
}  // namespace pylandscape::cpu
