// How work is divided among threads, and stopped.
#pragma once
#include <chrono>
#include <functional>

namespace pylandscape {

// Runs body(worker) for worker = 0 .. count-1, possibly at once, and waits.
struct Parallel {
  int workers = 1;
  std::function<void(const std::function<void(int)>& body)> run;
};

// Asked now and then on the calling thread; true stops the work.
using ShouldStop = std::function<bool()>;
// When to ask that next; one for several Items of a call, each of which may be short.
using NextPoll = std::chrono::nanoseconds;

// Thrown by a constructor that was stopped.
struct Stopped {};

}  // namespace pylandscape
