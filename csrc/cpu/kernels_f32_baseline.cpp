#define PL_ISA_NS baseline
#define PL_KERNELS_F32
#include "cpu/kernels.inl"
