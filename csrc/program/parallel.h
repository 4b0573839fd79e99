// How work is divided among threads, and stopped.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>

namespace pylandscape {

// Runs body(worker) for worker = 0 .. count-1, possibly at once, and waits.
struct Parallel {
  int workers = 1;
  std::function<void(const std::function<void(int)>& body)> run;
};

// Items on the threads; or, where most threads would have none and an item can be divided, one item
// after the other on the calling thread, which the others help inside of it.
struct Division {
  Division(int64_t count, bool divisible, const Parallel& all)
      : helpers(helpers_of(count, divisible, all)),
        items(helpers == nullptr ? all : Parallel{1, [](const auto& body) { body(0); }}) {}
  static const Parallel* helpers_of(int64_t count, bool divisible, const Parallel& all) {
    return divisible && 2 * count <= all.workers ? &all : nullptr;
  }
  const Parallel* helpers;
  const Parallel items;
};

// Asked now and then on the calling thread; true stops the work.
using ShouldStop = std::function<bool()>;
// When to ask that next; one for several Items of a call, each of which may be short.
using NextPoll = std::chrono::nanoseconds;

// Thrown by a constructor that was stopped.
struct Stopped {};

}  // namespace pylandscape
