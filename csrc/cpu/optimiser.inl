// One step of an optimiser over theta and its moments. Only included by kernels.inl.
//
// The arithmetic and its order are those of torch.optim's loops over one tensor. Loops are plain, so
// that the compiler makes vectors of them; an element's result does not depend on its place.
namespace pylandscape::cpu {
namespace {

// f(i, g, theta) for every element; g with weight decay that is added to it. f changes theta.
template <typename T, typename F>
inline void each_element(const Optimiser& o, int64_t n, double scale, const double* __restrict__ g,
                         T* __restrict__ theta, F f) {
  const T added = o.decoupled ? T(0) : T(o.weight_decay);
  const T kept = o.decoupled ? T(1 - o.rate * o.weight_decay) : T(1);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T at = theta[i];
    const T slope = T(scale * g[i]) + added * at;
    at *= kept;
    f(i, slope, at);
    theta[i] = at;
  }
}

template <typename T>
inline T root_of(T x) {
  return __builtin_sqrt(x);
}
template <>
inline float root_of(float x) {
  return __builtin_sqrtf(x);
}

template <typename T>
void sgd(const Optimiser& o, int64_t n, double scale, const double* g, T* theta, T* const* slots) {
  const T rate = T(o.rate);
  if (o.momentum == 0) {
    each_element(o, n, scale, g, theta, [=](int64_t, T slope, T& at) { at -= rate * slope; });
    return;
  }
  const T momentum = o.undamped ? T(0) : T(o.momentum), part = o.undamped ? T(1) : T(1 - o.dampening);
  const T ahead = T(o.momentum);
  T* __restrict__ velocity = slots[0];
  if (o.nesterov)
    each_element(o, n, scale, g, theta, [=](int64_t i, T slope, T& at) {
      const T v = momentum * velocity[i] + part * slope;
      velocity[i] = v;
      at -= rate * (slope + ahead * v);
    });
  else
    each_element(o, n, scale, g, theta, [=](int64_t i, T slope, T& at) {
      const T v = momentum * velocity[i] + part * slope;
      velocity[i] = v;
      at -= rate * v;
    });
}

template <typename T>
void adagrad(const Optimiser& o, int64_t n, double scale, const double* g, T* theta,
             T* const* slots) {
  const T size = T(o.step_size), inside = T(o.inside), eps = T(o.eps);
  T* __restrict__ sum = slots[0];
  each_element(o, n, scale, g, theta, [=](int64_t i, T slope, T& at) {
    const T s = sum[i] + slope * slope;
    sum[i] = s;
    at -= size * slope / (root_of(s + inside) + eps);
  });
}

template <typename T>
void rmsprop(const Optimiser& o, int64_t n, double scale, const double* g, T* theta,
             T* const* slots) {
  const T rate = T(o.rate), inside = T(o.inside), eps = T(o.eps), momentum = T(o.momentum);
  const T decay = T(o.decay), part = T(1 - o.decay);
  T* __restrict__ square = slots[0];
  T* __restrict__ velocity = o.momentum != 0 ? slots[1] : nullptr;
  each_element(o, n, scale, g, theta, [=](int64_t i, T slope, T& at) {
    const T s = decay * square[i] + part * slope * slope;
    square[i] = s;
    T move = slope / (root_of(s + inside) + eps);
    if (velocity != nullptr) {
      move += momentum * velocity[i];
      velocity[i] = move;
    }
    at -= rate * move;
  });
}

template <typename T>
void adadelta(const Optimiser& o, int64_t n, double scale, const double* g, T* theta,
              T* const* slots) {
  const T rate = T(o.rate), inside = T(o.inside), decay = T(o.decay), part = T(1 - o.decay);
  T* __restrict__ square = slots[0];
  T* __restrict__ moved = slots[1];
  each_element(o, n, scale, g, theta, [=](int64_t i, T slope, T& at) {
    const T s = decay * square[i] + part * slope * slope;
    square[i] = s;
    const T move = root_of(moved[i] + inside) / root_of(s + inside) * slope;
    moved[i] = decay * moved[i] + part * move * move;
    at -= rate * move;
  });
}

template <typename T>
void adam(const Optimiser& o, int64_t n, double scale, const double* g, T* theta, T* const* slots) {
  const T size = T(o.step_size), inside = T(o.inside), eps = T(o.eps), inverse = T(1 / o.root);
  const T part = T(o.decay), decay = T(o.decay2), part2 = T(1 - o.decay2);
  T* __restrict__ mean = slots[0];
  T* __restrict__ square = slots[1];
  each_element(o, n, scale, g, theta, [=](int64_t i, T slope, T& at) {
    const T m = mean[i] + part * (slope - mean[i]);
    mean[i] = m;
    const T s = decay * square[i] + part2 * slope * slope;
    square[i] = s;
    at -= size * m / (root_of(s + inside) * inverse + eps);
  });
}

template <typename T>
void optimise(const Optimiser& o, int64_t n, double scale, const double* g, T* theta,
              T* const* slots) {
  switch (o.kind) {
    case OptimiserKind::kSgd: return sgd(o, n, scale, g, theta, slots);
    case OptimiserKind::kAdagrad: return adagrad(o, n, scale, g, theta, slots);
    case OptimiserKind::kRmsprop: return rmsprop(o, n, scale, g, theta, slots);
    case OptimiserKind::kAdadelta: return adadelta(o, n, scale, g, theta, slots);
    case OptimiserKind::kAdam: return adam(o, n, scale, g, theta, slots);
  }
}

}  // namespace
}  // namespace pylandscape::cpu
