#include "cpu/draw.h"
namespace pylandscape::cpu::PL_ISA_NS {
const DrawKernels draw{nullptr};
}
