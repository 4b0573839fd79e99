#include "program/buffer.h"

#include <cstring>
#include <new>

namespace pylandscape {

template <typename T>
Buffer<T>::Buffer(int64_t count) : size_(count) {
  if (count == 0) return;
  const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, static_cast<size_t>(bytes));
  if (p == nullptr) throw std::bad_alloc();
  std::memset(p, 0, static_cast<size_t>(bytes));
  data_.reset(static_cast<T*>(p));
}

template class Buffer<float>;
template class Buffer<double>;
template class Buffer<int32_t>;

}  // namespace pylandscape
