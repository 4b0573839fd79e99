#define PL_ISA_NS baseline
#include "cpu/directions.inl"
