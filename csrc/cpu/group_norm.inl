// Group norm, forward. Only included by kernels.inl. Derivatives are those of layer norm
// (reverse.inl), over other rows.
namespace pylandscape::cpu {
namespace {

constexpr int64_t kNormBlock = 16;  // rows summed in T before they join the double sum

// A sum of many vectors, in double.
template <typename T>
class LongSum {
 public:
  void add(Vec<T> v) {
    part_ += v;
    if (++count_ == kNormBlock) flush();
  }
  Vec<double, kLanes<T>> total() {
    flush();
    return total_;
  }

 private:
  void flush() {
    total_ += __builtin_convertvector(part_, Vec<double, kLanes<T>>);
    part_ = Vec<T>{}, count_ = 0;
  }
  Vec<T> part_{};
  Vec<double, kLanes<T>> total_{};
  int64_t count_ = 0;
};

// y = (x - mean) / sqrt(variance + eps) * gain + shift. Around a first mean m that is good to
// rounding, d = x - m is exact where x is near it; then mean(d) and variance are small corrections
// and a sum without cancellation.
template <typename T>
void group_norm(const NormArgs& a, int64_t cols, const T* gain, const T* shift, bool relu,
                const T* x, T* y) {
  constexpr int N = kLanes<T>;
  using Wide = Vec<double, N>;
  const int64_t width = a.size / a.pixels, step = a.outer * width * cols;
  const double share = 1.0 / double(a.size);
  for (int64_t o = 0; o < a.outer; ++o)
    for (int64_t c = 0; c < cols; c += N) {
      const int64_t at = o * width * cols + c;
      const auto each = [&](auto f) {  // f(channel of the group, offset)
        for (int64_t p = 0; p < a.pixels; ++p)
          for (int64_t w = 0; w < width; ++w) f(w, at + p * step + w * cols);
      };
      LongSum<T> sum, rest, squares;
      each([&](int64_t, int64_t i) { sum.add(load<T, N>(x + i)); });
      const Vec<T> m = __builtin_convertvector(sum.total() * share, Vec<T>);
      each([&](int64_t, int64_t i) {
        const Vec<T> d = load<T, N>(x + i) - m;
        rest.add(d);
        squares.add(d * d);
      });
      const Wide mean = rest.total() * share;
      const Wide variance = squares.total() * share - mean * mean;
      Wide inverse;
      for (int l = 0; l < N; ++l) inverse[l] = 1.0 / __builtin_sqrt(variance[l] + a.eps);
      const Vec<T> scale = __builtin_convertvector(inverse, Vec<T>);
      const Vec<T> centre = __builtin_convertvector(-mean * inverse, Vec<T>);
      each([&](int64_t w, int64_t i) {
        Vec<T> v = (load<T, N>(x + i) - m) * scale + centre;
        if (gain != nullptr) v *= gain[o * width + w];
        if (shift != nullptr) v += shift[o * width + w];
        store<T, N>(y + i, relu ? vmax(v, Vec<T>{}) : v);
      });
    }
}

}  // namespace
}  // namespace pylandscape::cpu
