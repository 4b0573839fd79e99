#define PL_ISA_NS avx512
#define PL_KERNELS_F32
#include "cpu/kernels.inl"
