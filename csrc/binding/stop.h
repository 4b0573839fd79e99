// Work that Ctrl-C stops.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>

#include "binding/pool.h"

namespace pylandscape {

// Ctrl-C: asks Python whether a signal handler raised. Only does anything on the main thread.
inline bool interrupted() {
  pybind11::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// The same for many short pieces of work, asked at most every 50 ms.
class Polls {
 public:
  bool asked() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return false;
    next_ = now + std::chrono::milliseconds(50);
    return interrupted();
  }

 private:
  std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now();
};

// Runs work(pool) without the GIL; where it was stopped, raises what the signal handler raised.
template <typename F>
void finish(F work) {
  const Parallel pool = torch_pool();
  bool done = false;
  {
    pybind11::gil_scoped_release release;
    done = work(pool);
  }
  if (!done) throw pybind11::error_already_set();
}

// Constructs a C(args..., pool, stop) without the GIL, which Ctrl-C stops in the same way.
template <typename C, typename... Args>
std::unique_ptr<C> construct(const Args&... args) {
  const Parallel pool = torch_pool();
  try {
    pybind11::gil_scoped_release release;
    return std::make_unique<C>(args..., pool, interrupted);
  } catch (const Stopped&) {
    throw pybind11::error_already_set();
  }
}

}  // namespace pylandscape
