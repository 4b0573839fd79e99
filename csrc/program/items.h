// Work items, handed out one by one to the workers of a Parallel.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

#include "program/program.h"

namespace pylandscape {

class Items {
 public:
  Items(int64_t count, const Parallel& parallel, const ShouldStop& stop)
      : count_(count), parallel_(parallel), stop_(stop) {}

  // Runs body on items 0 .. count-1; false when stopped before the end.
  bool run(const std::function<void(int worker, int64_t item)>& body) {
    const auto caller = std::this_thread::get_id();
    parallel_.run([&](int worker) {
      const bool polls = stop_ && std::this_thread::get_id() == caller;
      auto next_poll = std::chrono::steady_clock::now() + kPollInterval;
      while (!stopped_.load(std::memory_order_relaxed)) {
        const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
        if (item >= count_) break;
        body(worker, item);
        if (polls && std::chrono::steady_clock::now() >= next_poll) {
          if (stop_()) stopped_.store(true);
          next_poll = std::chrono::steady_clock::now() + kPollInterval;
        }
      }
    });
    return !stopped_.load();
  }

 private:
  static constexpr auto kPollInterval = std::chrono::milliseconds(50);
  const int64_t count_;
  const Parallel& parallel_;
  const ShouldStop& stop_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace pylandscape
