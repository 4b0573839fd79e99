#define PL_ISA_NS baseline
#define PL_KERNELS_F64
#include "cpu/kernels.inl"
