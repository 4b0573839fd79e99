// Limits of the CUDA kernels that those who call them must know too: Python reads them by name
// (binding/constants.cpp).
#pragma once
#include <cstdint>

namespace pylandscape::cuda {

constexpr int64_t kMostStarts = 64;       // of one launch over bases (cuda/basis.h)
constexpr int64_t kMostBasisRows = 8192;  // of one basis
constexpr int64_t kMostOrder = 1000;      // of the matrices of small_eigenvalues (cuda/eigenvalues.h)
constexpr int kSumRun = 64;  // rows that sums over samples add in the program's dtype (cuda/products.h)

}  // namespace pylandscape::cuda
