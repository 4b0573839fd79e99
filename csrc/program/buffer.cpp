#include "program/buffer.h"

#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pylandscape {
namespace {

// Where the system gives pages of this size when asked, the first touch of a large buffer is a
// fault for each of them and not for every 4 KiB, and its rows take few entries of the TLB.
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

template <typename T>
Buffer<T>::Buffer(int64_t count) : size_(count) {
  if (count == 0) return;
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  const bool huge = bytes >= 2 * kHugePage;
  void* p = nullptr;
  if (posix_memalign(&p, huge ? kHugePage : 64, (bytes + 63) / 64 * 64) != 0)
    throw std::bad_alloc();
#ifdef __linux__
  if (huge) madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice: may be refused
#endif
  std::memset(p, 0, (bytes + 63) / 64 * 64);
  data_.reset(static_cast<T*>(p));
}

template class Buffer<float>;
template class Buffer<double>;
template class Buffer<int32_t>;

}  // namespace pylandscape
