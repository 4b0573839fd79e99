// Work items, handed out one by one to the workers of a Parallel.
#pragma once
#include <time.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "program/parallel.h"

namespace pylandscape {

class Items {
 public:
  Items(int64_t count, const Parallel& parallel, const ShouldStop& stop, NextPoll* next = nullptr)
      : count_(count), parallel_(parallel), stop_(stop), next_poll_(next ? *next : own_poll_) {}

  // Runs body on items 0 .. count-1; false when stopped before the end. Once per object.
  bool run(const std::function<void(int worker, int64_t item)>& body) {
    caller_ = std::this_thread::get_id();
    if (next_poll_ == NextPoll{}) next_poll_ = now() + kPollInterval;
    parallel_.run([&](int worker) {
      while (!stopped_.load(std::memory_order_relaxed)) {
        const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
        if (item >= count_) break;
        body(worker, item);
        stopping();
      }
    });
    return !stopped_.load();
  }

  // For bodies that take long: whether to leave early. Asks on the calling thread alone, every 50 ms.
  bool stopping() {
    if (stop_ && std::this_thread::get_id() == caller_ &&
        now() >= next_poll_) {
      if (stop_()) stopped_.store(true);
      next_poll_ = now() + kPollInterval;
    }
    return stopped_.load(std::memory_order_relaxed);
  }

 private:
  static constexpr auto kPollInterval = std::chrono::milliseconds(50);
  // Read after every item, which may take less than a microsecond: to the kernel's tick where there
  // is such a clock, which takes a tenth of the time.
  static std::chrono::nanoseconds now() {
#ifdef CLOCK_MONOTONIC_COARSE
    timespec t;
    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &t) == 0)
      return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
#endif
    return std::chrono::steady_clock::now().time_since_epoch();
  }
  const int64_t count_;
  const Parallel& parallel_;
  const ShouldStop& stop_;
  std::thread::id caller_;
  NextPoll own_poll_{};
  NextPoll& next_poll_;  // of the calling thread alone
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace pylandscape
