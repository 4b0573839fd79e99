#include "cpu/kernels.h"
namespace pylandscape::cpu::PL_ISA_NS {
const Kernels<float> kernels_f32{1};
const Kernels<double> kernels_f64{1};
}
