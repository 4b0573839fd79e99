#define PL_ISA_NS avx2
#include "cpu/points.inl"
