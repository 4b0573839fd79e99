#define PL_ISA_NS avx512
#include "cpu/points.inl"
