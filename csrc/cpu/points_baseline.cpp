#define PL_ISA_NS baseline
#include "cpu/points.inl"
