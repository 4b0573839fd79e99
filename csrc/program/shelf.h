// Memory put aside by what is no more, for the next of its kind: fresh pages cost more than the
// arithmetic of a small network.
#pragma once
#include <memory>
#include <mutex>
#include <utility>

namespace pylandscape {

class Shelf {
 public:
  // What was put there last, or null.
  std::shared_ptr<void> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(there_, nullptr);
  }
  void put(std::shared_ptr<void> memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    there_.swap(memory);  // what was there goes after the lock
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<void> there_;
};

}  // namespace pylandscape
