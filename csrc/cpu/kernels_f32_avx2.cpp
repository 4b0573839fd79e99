#define PL_ISA_NS avx2
#define PL_KERNELS_F32
#include "cpu/kernels.inl"
