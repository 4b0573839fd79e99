// The passes of layer norm and group norm, which differ in where a group's elements lie (NormArgs).
#pragma once
#include <algorithm>

#include "program/ops/entry.h"

namespace pylandscape {

template <class Own>
struct NormRules : Rules<Own> {
  static void lower(PointLowering& to, const Op& op) {
    to.add_with_gain(PointStep(op), op.weight, op.bias, Own::gains(op));
  }

  static void hessian(HessianSteps& to, const PointStep& from) {
    to.add(hessian::Kind::kNorm, from);
  }

  template <class P>
  static void reverse(const P& p) {
    p.kernels.layer_norm_reverse(p.op.norm_args(), p.cols, p.weight(), p.x(), p.dy, p.dx, p.dw,
                                 p.db);
  }

  template <class P>
  static void tangent_forward(const P& p) {
    p.kernels.layer_norm_tangent(p.op.norm_args(), p.cols, p.weight(), p.x(), p.rx, p.rw, p.rb,
                                 p.ry);
  }

  template <class P>
  static void tangent_reverse(const P& p) {
    p.kernels.layer_norm_reverse_tangent(p.op.norm_args(), p.cols, p.weight(),
                                         p.along(p.op.weight), p.x(), p.rx, p.dy, p.rdy, p.rdx,
                                         p.rdw, p.rdb);
  }

  // Lane by lane through the kernel: each sample is the first of otherwise weightless columns.
  template <typename T>
  static void sample_gradients(const SampleGradients<T>& p) {
    const int64_t lanes = p.kernels.vector_length, rows = p.rows();
    const int64_t weight = p.offset(p.op.weight), bias = p.offset(p.op.bias);
    const int64_t gains = Own::gains(p.op);
    const T *x = p.x(), *dy = p.dy;
    std::vector<double> sums(2 * gains);
    Buffer<T> one(2 * rows * lanes);
    for (int64_t c = 0; c < p.samples; ++c) {
      for (int64_t f = 0; f < rows; ++f)
        for (int64_t l = 0; l < lanes; ++l) {
          one.data()[f * lanes + l] = x[f * p.cols + c];
          one.data()[(rows + f) * lanes + l] = l == 0 ? dy[f * p.cols + c] : T(0);
        }
      std::fill(sums.begin(), sums.end(), 0.0);
      p.kernels.layer_norm_reverse(p.op.norm_args(), lanes, p.weight(), one.data(),
                                   one.data() + rows * lanes, nullptr, sums.data(),
                                   sums.data() + gains);
      T* row = p.row(c);
      for (int64_t f = 0; f < gains; ++f) {
        if (weight >= 0) row[weight + f] += static_cast<T>(sums[f]);
        if (bias >= 0) row[bias + f] += static_cast<T>(sums[gains + f]);
      }
    }
  }
};

}  // namespace pylandscape
