// batch_norm: in each of k channels, by given statistics, which have no derivatives here, or by those
// of the batch, which question/batches.cpp takes.
#include <algorithm>
#include <cmath>

#include "program/ops/entry.h"
#include "program/ops/norm_affine.h"

namespace pylandscape {

int OpList::batch_norm(int x, int64_t outer, int64_t channels, double eps, int64_t mean,
                           int64_t variance, const int64_t* gain, const int64_t* shift) {
  require(in_features(x) == outer * channels, "batch_norm: features are not outer * channels");
  Op op(OpKind::kBatchNorm, {x});
  op.outer = outer, op.k = channels;
  op.norm.eps = eps;
  op.norm.mean = use(mean, 1, channels), op.norm.variance = use(variance, 1, channels);
  if (gain != nullptr) op.norm.gain = use(*gain, 1, channels);
  if (shift != nullptr) op.norm.shift = use(*shift, 1, channels);
  return add(std::move(op), in_features(x));
}

int OpList::batch_norm_own(int x, int64_t outer, int64_t channels, double eps,
                               const int64_t* gain, const int64_t* shift,
                               const int64_t* keep_mean, const int64_t* keep_variance,
                               double momentum) {
  require(in_features(x) == outer * channels, "batch_norm: features are not outer * channels");
  require((keep_mean == nullptr) == (keep_variance == nullptr), "batch_norm: keep both or neither");
  Op op(OpKind::kBatchNorm, {x});
  op.outer = outer, op.k = channels;
  op.norm.eps = eps, op.norm.own = true, op.norm.momentum = momentum;
  if (gain != nullptr) op.norm.gain = use(*gain, 1, channels);
  if (shift != nullptr) op.norm.shift = use(*shift, 1, channels);
  if (keep_mean != nullptr) {
    op.norm.keep_mean = *keep_mean, op.norm.keep_variance = *keep_variance;
    for (const int64_t at : {op.norm.keep_mean, op.norm.keep_variance})
      require(at >= 0 && at + channels <= n_, "batch_norm: kept statistics outside theta");
  }
  return add(std::move(op), in_features(x));
}

namespace {

// y = x * scale + shift; xhat = x * inverse + centre.
template <typename T>
struct Channels {
  std::vector<T> scale, shift, inverse, centre;

  explicit Channels(const Pass<T>& p)
      : scale(p.op.k), shift(p.op.k), inverse(p.op.k), centre(p.op.k) {
    const Norm& norm = p.op.norm;
    const T *gain = p.parameter(norm.gain), *offset = p.parameter(norm.shift);
    const T *mean = p.parameter(norm.mean), *variance = p.parameter(norm.variance);
    for (int64_t c = 0; c < p.op.k; ++c) {
      const double own = 1 / std::sqrt(variance[c] + norm.eps);
      const double factor = gain != nullptr ? gain[c] * own : own;
      inverse[c] = static_cast<T>(own), centre[c] = static_cast<T>(-mean[c] * own);
      scale[c] = static_cast<T>(factor);
      shift[c] = static_cast<T>((offset != nullptr ? offset[c] : 0.0) - mean[c] * factor);
    }
  }

  // Tangents of scale and shift, along those of gain and shift.
  Channels(const Channels& a, const T* rgain, const T* rshift) : Channels(a) {
    for (size_t c = 0; c < scale.size(); ++c) {
      const T gain = rgain != nullptr ? rgain[c] : T(0);
      scale[c] = gain * inverse[c];
      shift[c] = gain * centre[c] + (rshift != nullptr ? rshift[c] : T(0));
    }
  }
};

struct BatchNorm : Rules<BatchNorm> {
  static bool takes_relu(const Op&) { return true; }
  static Epilogue epilogue(const Op& op) {
    return op.norm.own ? Epilogue::kNone : Epilogue::kNorm;
  }

  static void lower(PointLowering& to, const Op& op) {
    const Norm& norm = op.norm;
    to.require(!norm.own && !to.moves(norm.mean) && !to.moves(norm.variance),
               "batch norm whose statistics move");
    PointStep step(op);
    const double *mean = to.constant(norm.mean), *variance = to.constant(norm.variance);
    for (int64_t c = 0; c < op.k; ++c) {
      const double inverse = 1 / std::sqrt(variance[c] + norm.eps);
      step.scale.push_back(inverse), step.shift.push_back(-mean[c] * inverse);
    }
    to.add_with_gain(std::move(step), norm.gain, norm.shift, op.k);
  }

  static void hessian(HessianSteps& to, const PointStep& from) {
    hessian::Step& step = to.add(hessian::Kind::kAffine, from);
    step.weight = to.add_constants(from.scale.data(), step.k);
    step.bias = to.add_constants(from.shift.data(), step.k);
  }

  template <typename T>
  static void call(const Call<T>& c) {
    const std::vector<T> affine = norm_affine(c);
    c.kernels.channel_affine(c.op.outer, c.op.k, c.cols, affine.data(), affine.data() + c.op.k,
                             c.op.relu, c.x(), c.y);
  }

  template <typename T>
  static void forward(const Forward<T>& p) {
    const Channels<T> a(p);
    p.kernels.channel_affine(p.op.outer, p.op.k, p.cols, a.scale.data(), a.shift.data(), p.op.relu,
                             p.x(), p.out);
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    const Channels<T> a(p);
    add_sums(p, a, p.dy, p.target(p.op.norm.gain), p.target(p.op.norm.shift));
    if (p.dx != nullptr) add_scaled(p, a.scale, p.dy, p.dx);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {  // Ry = s Rx + Rgain xhat + Rshift
    const Channels<T> a(p), r(a, p.along(p.op.norm.gain), p.along(p.op.norm.shift));
    p.kernels.channel_affine(p.op.outer, p.op.k, p.cols, r.scale.data(), r.shift.data(), false,
                             p.x(), p.ry);
    if (p.rx != nullptr) add_scaled(p, a.scale, p.rx, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    // R(dx) = s R(dy) + Rs dy; R(dgain) = sum R(dy) xhat + dy Rxhat
    const T* rgain = p.along(p.op.norm.gain);
    const Channels<T> a(p), r(a, rgain, p.along(p.op.norm.shift));
    add_sums(p, a, p.rdy, p.target(p.op.norm.gain), p.target(p.op.norm.shift));
    if (p.rx != nullptr && rgain != nullptr) {
      const std::vector<T> zero(p.op.k);
      p.kernels.channel_dots(p.op.outer, p.op.k, p.cols, a.inverse.data(), zero.data(), p.rx, p.dy,
                             p.target(p.op.norm.gain));
    }
    if (p.rdx == nullptr) return;
    add_scaled(p, a.scale, p.rdy, p.rdx);
    if (rgain != nullptr) add_scaled(p, r.scale, p.dy, p.rdx);
  }

  // Of points as lanes, y = x * scale + shift by numbers that all points share.
  static void forward(const PointForward& p) {
    p.kernels.channel_affine(p.op.outer, p.op.k, p.cols, p.step.scale.data(), p.step.shift.data(),
                             p.op.relu, p.x(), p.y);
  }
  static void reverse(const PointReverse& p) { add_scaled(p, p.step.scale, p.dy, p.dx); }
  static void tangent_forward(const PointTangentForward& p) {
    std::fill_n(p.ry, p.size(), 0.0);
    add_scaled(p, p.step.scale, p.rx, p.ry);
  }
  static void tangent_reverse(const PointTangentReverse& p) {
    add_scaled(p, p.step.scale, p.rdy, p.rdx);
  }

  // y += x * scale.
  template <class P, typename T>
  static void add_scaled(const P& p, const std::vector<T>& scale, const T* x, T* y) {
    p.kernels.channel_affine_add(p.op.outer, p.op.k, p.cols, scale.data(), nullptr, x, y);
  }

  // dgain += sum dy xhat, dshift += sum dy.
  template <typename T>
  static void add_sums(const Pass<T>& p, const Channels<T>& a, const T* dy, double* dgain,
                       double* dshift) {
    const Op& op = p.op;
    if (dgain != nullptr)
      p.kernels.channel_dots(op.outer, op.k, p.cols, a.inverse.data(), a.centre.data(), p.x(), dy,
                             dgain);
    for (int64_t i = 0; dshift != nullptr && i < op.outer; ++i)
      p.kernels.row_sums_add(op.k, p.cols, dy + i * op.k * p.cols, dshift);
  }

  template <typename T>
  static void sample_gradients(const SampleGradients<T>& p) {
    const Channels<T> a(p);
    const T* x = p.x();
    const int64_t gain = p.offset(p.op.norm.gain), shift = p.offset(p.op.norm.shift);
    for (int64_t f = 0; f < p.rows(); ++f)
      for (int64_t c = 0; c < p.samples; ++c) {
        T* row = p.row(c);
        const T d = p.dy[f * p.cols + c];
        const int64_t k = f % p.op.k;
        if (gain >= 0) row[gain + k] += d * (x[f * p.cols + c] * a.inverse[k] + a.centre[k]);
        if (shift >= 0) row[shift + k] += d;
      }
  }
};

}  // namespace

const OpEntry ops::batch_norm = make_entry<BatchNorm>();

}  // namespace pylandscape
