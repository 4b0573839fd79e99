// The kernels of the program, one table per element type and instruction set.
#pragma once
#include <cstdint>

namespace pylandscape::cpu {

template <typename T>
struct Kernels {
  int vector_length;
};

template <typename T>
const Kernels<T>& kernels();

namespace baseline { extern const Kernels<float> kernels_f32; extern const Kernels<double> kernels_f64; }
namespace avx2 { extern const Kernels<float> kernels_f32; extern const Kernels<double> kernels_f64; }
namespace avx512 { extern const Kernels<float> kernels_f32; extern const Kernels<double> kernels_f64; }

}  // namespace pylandscape::cpu
