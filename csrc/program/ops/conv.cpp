// conv: a convolution over rows (h, w, channel); it can end with batch norm, a sum and relu.
#include <algorithm>

#include "program/ops/entry.h"
#include "program/ops/norm_affine.h"

namespace pylandscape {

int OpList::conv(int x, cpu::ConvArgs a, int64_t weight, const int64_t* bias) {
  require(a.groups > 0 && a.channels > 0 && a.rows > 0 && a.kernel_h > 0 && a.kernel_w > 0 &&
              a.stride_h > 0 && a.stride_w > 0 && a.dilation_h > 0 && a.dilation_w > 0 &&
              a.pad_h >= 0 && a.pad_w >= 0,
          "conv: sizes must be positive");
  require(in_features(x) == a.in_h * a.in_w * a.groups * a.channels,
          "conv: input features are not in_h * in_w * channels");
  a.out_h = (a.in_h + 2 * a.pad_h - a.dilation_h * (a.kernel_h - 1) - 1) / a.stride_h + 1;
  a.out_w = (a.in_w + 2 * a.pad_w - a.dilation_w * (a.kernel_w - 1) - 1) / a.stride_w + 1;
  require(a.in_h + 2 * a.pad_h > a.dilation_h * (a.kernel_h - 1) &&
              a.in_w + 2 * a.pad_w > a.dilation_w * (a.kernel_w - 1),
          "conv: the kernel is larger than the image");
  Op op(OpKind::kConv, {x});
  op.conv = a;
  op.weight = use(weight, a.groups * a.rows, a.channels * a.kernel_h * a.kernel_w,
                  Use::Packing::kConv, a);
  if (bias != nullptr) op.bias = use(*bias, 1, a.groups * a.rows);
  return add(std::move(op), a.out_h * a.out_w * a.groups * a.rows);
}

namespace {

struct Conv : Rules<Conv> {
  static constexpr const char* no_points = "convolutions";
  static constexpr bool takes_epilogue = true;
  static bool takes_relu(const Op&) { return true; }
  static int64_t pixels(const Op& op) { return op.conv.in_h * op.conv.in_w; }
  static int64_t channels(const Op& op) { return op.conv.groups * op.conv.channels; }
  static int64_t outputs(const Op& op) { return op.conv.groups * op.conv.rows; }
  static Columns columns(const Op& op) {
    const cpu::ConvArgs& a = op.conv;
    if (!a.by_patches()) return {pixels(op), channels(op), 0, a.in_w, 1, pixels(op), 0};
    const int64_t out = a.out_h * a.out_w;
    return {out, channels(op) * a.kernel_h * a.kernel_w, 0, a.out_w, 1, out, 0, true};
  }

  template <typename T>
  static void call(const Call<T>& c) {
    const Op& op = c.op;
    cpu::Epilogue<T> e{nullptr, c.at.bias, op.inputs.size() > 1 ? c.x(1) : nullptr, op.relu};
    std::vector<T> affine;
    if (op.norm.on()) {
      affine = norm_affine(c);
      e.scale = affine.data(), e.shift = e.scale + affine.size() / 2;
    }
    c.kernels.conv(op.conv, c.cols, c.at.weight, c.x(), e, c.y);
  }

  template <typename T>
  static void forward(const Forward<T>& p) {
    const Call<T> c = call_of(p);
    call(c);
    if (p.packs_forward())
      p.kernels.pack_pixels(p.op.conv, p.cols, c.x(),
                            p.to.columns.data() + p.layout.columns_at[p.number]);
  }

  template <typename T>
  static void reverse(const Reverse<T>& p) {
    if (p.dw != nullptr && p.packs_late())
      p.kernels.pack_pixels(p.op.conv, p.cols, p.x(), p.late_columns);
    if (p.dw != nullptr) p.kernels.conv_outer_add(p.op.conv, p.cols, p.dy, p.columns(), p.dw);
    if (p.db != nullptr) pixel_sums_add(p, p.dy, p.db);
    if (p.dx != nullptr)
      p.kernels.conv_reverse(p.op.conv, p.cols, p.transposed(p.theta), p.dy, p.dx);
  }

  template <typename T>
  static void tangent_forward(const TangentForward<T>& p) {  // Ry = V x + W Rx + Rb
    if (p.rw == nullptr && p.rx == nullptr) {
      for (int64_t f = 0; f < p.rows(); ++f)
        std::fill_n(p.ry + f * p.cols, p.cols, p.rb[f % outputs(p.op)]);
      return;
    }
    cpu::Epilogue<T> e{nullptr, p.rb, nullptr, false};
    if (p.rw != nullptr) {
      p.kernels.conv(p.op.conv, p.cols, p.rw, p.x(), e, p.ry);
      e.shift = nullptr, e.add = p.ry;
    }
    if (p.rx != nullptr) p.kernels.conv(p.op.conv, p.cols, p.weight(), p.rx, e, p.ry);
  }

  template <typename T>
  static void tangent_reverse(const TangentReverse<T>& p) {
    // R(dW) = R(dy) x^T + dy Rx^T; R(dx) = W^T R(dy) + V^T dy
    const cpu::ConvArgs& a = p.op.conv;
    if (p.rdw != nullptr) {
      if (p.packs_late()) p.kernels.pack_pixels(a, p.cols, p.x(), p.late_columns);
      p.kernels.conv_outer_add(a, p.cols, p.rdy, p.columns(), p.rdw);
      if (p.rx != nullptr) {
        p.kernels.pack_pixels(a, p.cols, p.rx, p.own_columns);
        p.kernels.conv_outer_add(a, p.cols, p.dy, p.own_columns, p.rdw);
      }
    }
    if (p.rdb != nullptr) pixel_sums_add(p, p.rdy, p.rdb);
    if (p.rdx == nullptr) return;
    p.kernels.conv_reverse(a, p.cols, p.transposed(p.theta), p.rdy, p.rdx);
    if (p.rdw != nullptr) p.kernels.conv_reverse(a, p.cols, p.transposed(p.v), p.dy, p.rdx);
  }

  template <typename T>
  static double form(const TangentReverse<T>& p) {  // <dy, 2 V Rx>
    if (p.rx == nullptr || p.along(p.op.weight) == nullptr) return 0;
    p.kernels.conv(p.op.conv, p.cols, p.along(p.op.weight), p.rx, {}, p.rdy);
    return 2 * p.dot(p.size(), p.rdy, p.dy);
  }

  // db[m] += the sums over pixels and columns of dy.
  template <typename T>
  static void pixel_sums_add(const Pass<T>& p, const T* dy, double* db) {
    const int64_t features = outputs(p.op);
    for (int64_t i = 0; i < p.op.conv.out_h * p.op.conv.out_w; ++i)
      p.kernels.row_sums_add(features, p.cols, dy + i * features * p.cols, db);
  }

  template <typename T>
  static void sample_gradients(const SampleGradients<T>& p) {
    const int64_t weight = p.offset(p.op.weight), bias = p.offset(p.op.bias);
    if (weight >= 0) {
      const int64_t weights = p.program.uses()[p.op.weight].size();
      Buffer<T> own(weights * p.cols);
      p.kernels.conv_outer_lanes(p.op.conv, p.cols, p.dy, p.x(), own.data());
      for (int64_t c = 0; c < p.samples; ++c)
        for (int64_t i = 0; i < weights; ++i) p.row(c)[weight + i] += own.data()[i * p.cols + c];
    }
    for (int64_t f = 0; bias >= 0 && f < p.rows(); ++f)
      for (int64_t c = 0; c < p.samples; ++c)
        p.row(c)[bias + f % outputs(p.op)] += p.dy[f * p.cols + c];
  }
};

}  // namespace

const OpEntry ops::conv = make_entry<Conv>();

}  // namespace pylandscape
