#include "program/program.h"

#include <algorithm>

namespace pylandscape {

template <typename T>
Program<T>::Program(int64_t n, std::vector<T> constants)
    : OpList(n, static_cast<int64_t>(constants.size())),
      kernels_(cpu::kernels<T>()),
      constants_(std::move(constants)) {}

template <typename T>
int64_t Program<T>::constants(int64_t count, const double* values) {
  require(output_ < 0, "already finished");
  const int64_t first = constant_count_;
  for (int64_t i = 0; i < count; ++i) constants_.push_back(static_cast<T>(values[i]));
  constant_count_ += count;
  return -1 - first;
}

template <typename T>
void Program<T>::pack(const Use& use, const T* theta, const T* constants, T* dst) const {
  const T* source = use.source >= 0 ? theta : constants;
  if (source == nullptr) {
    std::fill_n(dst, use.size(), T(0));
    return;
  }
  source += use.source >= 0 ? use.source : -1 - use.source;
  switch (use.packing) {
    case Use::Packing::kPlain: std::copy_n(source, use.size(), dst); break;
    case Use::Packing::kPanels: kernels_.pack(use.rows, use.cols, source, dst); break;
    case Use::Packing::kConv: kernels_.pack_conv(use.conv, source, dst); break;
    case Use::Packing::kTransposed:
      kernels_.pack_transposed(use.cols, use.rows, source, dst);
      break;
    case Use::Packing::kColumns:
      for (int64_t c = 0; c < use.cols; ++c)
        for (int64_t r = 0; r < use.rows; ++r) *dst++ = source[r * use.cols + c];
      break;
  }
}

template class Program<float>;
template class Program<double>;

}  // namespace pylandscape
