// Memory of the core: 64-byte aligned, zeroed.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace pylandscape {

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count);  // std::bad_alloc
  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace pylandscape
