// Compiled once per instruction set and element type, with PL_ISA_NS naming the set and
// PL_KERNELS_F32 or PL_KERNELS_F64 the type (files of even size compile side by side). Everything
// but the table is in anonymous namespaces, so that no code for a newer set can be linked into an
// older one.
#include "cpu/kernels.h"

#include <type_traits>
#include <utility>

#include "cpu/vec.inl"
#include "cpu/math.inl"
#include "cpu/elementwise.inl"
#include "cpu/linear.inl"
#include "cpu/depthwise.inl"
#include "cpu/conv.inl"
#include "cpu/pool.inl"
#include "cpu/matmul.inl"
#include "cpu/attention.inl"
#include "cpu/group_norm.inl"
#include "cpu/batch_norm.inl"
#include "cpu/losses.inl"
#include "cpu/reverse.inl"
#include "cpu/norm_reverse.inl"
#include "cpu/conv_reverse.inl"
#include "cpu/sequence.inl"
#include "cpu/basis.inl"
#include "cpu/optimiser.inl"

namespace pylandscape::cpu::PL_ISA_NS {

#define PL_KERNEL_TABLE(T)                                                                     \
  {                                                                                            \
    kLanes<T>, kRows, &pack<T>, &linear<T>, &linear_add<T>, &combine<T>, &perturb<T>,          \
        &unary<T>, &unary_derivatives<T>, &binary<T>, &fill_rows<T>, &layer_norm<T>,           \
        &softmax<T>, &pack_conv<T>, &conv<T>, &channel_affine<T>, &channel_moments<T>,         \
        &embedding<T>, &cell<T>, &loss<T>, &loss_gradient<T>, &loss_hvp<T>,                    \
        &pack_columns<T>, &pack_transposed<T>,                                                 \
        &outer_add<T>, &outer_add_rows<T>, &row_sums_add<T>, &product_add<T>, &mask<T>,        \
        &scale_columns<T>,                                                                     \
        &column_dots<T>, &divide_tangent<T>, &divide_reverse<T>, &divide_reverse_tangent<T>,   \
        &layer_norm_tangent<T>, &layer_norm_reverse<T>, &layer_norm_reverse_tangent<T>,        \
        &softmax_tangent<T>, &softmax_reverse<T>, &softmax_reverse_tangent<T>,                 \
        &pack_conv_transposed<T>, &conv_reverse<T>, &pack_pixels<T>, &conv_outer_add<T>,       \
        &conv_outer_lanes<T>, &channel_affine_add<T>, &channel_dots<T>, &embedding_add<T>,   \
        &cell_tangent<T>, &cell_reverse<T>, &cell_reverse_tangent<T>, &basis_dots<T>,          \
        &basis_subtract<T>, &basis_subtract_from<T>, &scale<T>, &dot_double<T>,                \
        &linear_lanes<T>, &perturb_lanes<T>, &to_lanes<T>, &pool<T>, &pool_tangent<T>, \
        &pool_reverse<T>,                                                                      \
        &matmul<T>, &attention<T>, &group_norm<T>, &batch_moments<T>, &own_norm_sums<T>,                      \
        &own_norm_reverse<T>, &own_norm_tangent<T>,                        \
        &own_norm_tangent_sums<T>, &own_norm_reverse_tangent<T>, &optimise<T>                  \
  }

#ifdef PL_KERNELS_F32
const Kernels<float> kernels_f32 = PL_KERNEL_TABLE(float);
#endif
#ifdef PL_KERNELS_F64
const Kernels<double> kernels_f64 = PL_KERNEL_TABLE(double);
#endif

}  // namespace pylandscape::cpu::PL_ISA_NS
