// CUDA without a GPU: the .cu files of csrc/cuda, compiled by the host's C++ compiler with this
// folder before all others in the include path, run here block by block.
//
// A block's threads are fibers (fibers.h). A thread runs until it waits at a barrier or in a warp
// operation; who runs next is the order asked for: forward, reversed or shuffled anew each time. A
// result that depends on the order lacks a barrier. What a GPU would leave undefined stops here
// with a message: a barrier that some thread of the block never reaches, or reaches elsewhere; a
// shuffle without, or from, a lane outside its mask; a launch beyond the limits of a device.
//
// Shared memory starts as NaN in each block; the dynamic part ends where the launch said (the address
// sanitizer sees beyond). A kernel with static shared memory stands in an unnamed namespace.
//
// Under the thread sanitizer two threads of a block that touch the same place without a barrier or a
// warp operation between them are a race. Blocks follow each other.
#pragma once
#include <cmath>
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_emulated_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __stop_emulated_shared[];
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  int64_t count() const { return int64_t{x} * y * z; }
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kPlainShared = 48 << 10;   // dynamic shared memory without asking for more
constexpr size_t kMostShared = 227 << 10;   // of sm_90; sm_80 has 163 KiB

struct Settings {
  Order threads = Order::kForward, blocks = Order::kForward;
  uint64_t seed = 0;
};
inline Settings settings;
inline std::string error;  // of the launches since it was last asked for
inline std::map<void*, size_t> allowed_shared;  // by kernel
inline int64_t launches = 0, switches = 0;
inline unsigned char* shared_bytes = nullptr;  // of the running block

// Where the threads of a warp meet: each leaves a value for the others.
struct Warp {
  unsigned mask = 0, arrived = 0;
  int line = 0;
  int64_t meetings = 0;
  unsigned char value[kWarp][16];
};

class Block {
 public:
  Block(dim3 size, Fibers& fibers) : size_(size), fibers_(fibers) {
    const int threads = static_cast<int>(size.count());
    warps_.resize((threads + kWarp - 1) / kWarp);
  }

  // body() for every thread; the message of what went wrong, or nothing.
  std::string run(const std::function<void()>& body, uint64_t seed) {
    const int threads = static_cast<int>(size_.count());
    const auto enter = [&](int t) {
      current_ = t;
      threadIdx = dim3(t % size_.x, t / size_.x % size_.y, t / (size_.x * size_.y));
    };
    std::string wrong = fibers_.run(threads, body, enter, settings.threads, seed);
    if (wrong == Fibers::kStuck) wrong = stuck();
    return wrong;
  }

  void sync(int line) {
    const Unseen unseen;
    if (at_barrier_ > 0 && line != barrier_line_)
      fibers_.fail("__syncthreads: threads of one block wait in lines " +
                   std::to_string(barrier_line_) + " and " + std::to_string(line));
    barrier_line_ = line;
    fibers_.release(this);
    if (++at_barrier_ == size_.count()) {
      at_barrier_ = 0;
      ++barriers_;
      fibers_.wake([](int) { return true; });
      fibers_.yield();
    } else {
      for (const int64_t own = barriers_; barriers_ == own;) fibers_.wait();
    }
    fibers_.acquire(this);
  }

  int lane() const {
    const Unseen unseen;
    return current_ % kWarp;
  }

  // Leaves `bytes` for the other lanes of `mask`, and waits for theirs. orders: whether what they
  // wrote to memory is visible then, which __syncwarp alone makes it.
  Warp& meet(unsigned mask, const void* value, size_t bytes, int line, bool orders = false) {
    const Unseen unseen;
    const int index = current_ / kWarp;
    Warp& warp = warps_[index];
    if ((mask >> lane() & 1u) == 0)
      fibers_.fail("a warp operation in line " + std::to_string(line) + " by lane " +
                   std::to_string(lane()) + ", which is not in its mask");
    if (warp.arrived != 0 && (warp.mask != mask || warp.line != line))
      fibers_.fail("lanes of one warp meet in lines " + std::to_string(warp.line) + " and " +
                   std::to_string(line) + ", or with two masks");
    warp.mask = mask, warp.line = line;
    if (bytes > 0) std::memcpy(warp.value[lane()], value, bytes);
    gather(warp, index, orders);
    return warp;
  }
  // After the values are read: none may be overwritten before.
  void part(Warp& warp) {
    const Unseen unseen;
    gather(warp, current_ / kWarp, false);
  }

  template <typename T>
  T shuffle(unsigned mask, T value, int source, int line) {
    const Unseen unseen;
    static_assert(sizeof(T) <= sizeof(Warp::value[0]), "one value of a shuffle");
    Warp& warp = meet(mask, &value, sizeof(T), line);
    if ((mask >> source & 1u) == 0)
      fibers_.fail("a shuffle in line " + std::to_string(line) + " from lane " +
                   std::to_string(source) + ", which is not in its mask");
    std::memcpy(&value, warp.value[source], sizeof(T));
    part(warp);
    return value;
  }

 private:
  void gather(Warp& warp, int index, bool orders) {
    if (orders) fibers_.release(&warp);
    warp.arrived |= 1u << lane();
    if (warp.arrived == warp.mask) {
      warp.arrived = 0;
      ++warp.meetings;
      fibers_.wake([&](int t) { return t / kWarp == index; });
      fibers_.yield();
    } else {
      for (const int64_t before = warp.meetings; warp.meetings == before;) fibers_.wait();
    }
    if (orders) fibers_.acquire(&warp);
  }

  std::string stuck() const {
    if (at_barrier_ > 0)
      return "__syncthreads in line " + std::to_string(barrier_line_) + ": " +
             std::to_string(at_barrier_) + " of " + std::to_string(size_.count()) +
             " threads wait, the others never come";
    for (const Warp& warp : warps_)
      if (warp.arrived != 0)
        return "a warp operation in line " + std::to_string(warp.line) +
               " waits for lanes of its mask that never come";
    return "threads wait for nothing";
  }

  dim3 size_;
  Fibers& fibers_;
  int current_ = 0;
  int64_t at_barrier_ = 0, barriers_ = 0;
  int barrier_line_ = 0;
  std::vector<Warp> warps_;
};

inline Block* block = nullptr;

inline Fibers& fibers() {
  static Fibers all;
  return all;
}

inline std::string check_launch(void* kernel, dim3 grid, dim3 size, size_t shared) {
  if (grid.count() == 0 || size.count() == 0) return "a launch of no blocks or no threads";
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "a grid that is too large";
  if (size.count() > 1024) return "a block of more than 1024 threads";
  const auto found = allowed_shared.find(kernel);
  const size_t limit = found == allowed_shared.end() ? kPlainShared : found->second;
  if (shared > std::max(limit, kPlainShared))
    return "more dynamic shared memory than the kernel was allowed";
  return "";
}

inline void run_grid(void* kernel, dim3 grid, dim3 size, size_t shared,
                     const std::function<void()>& body) {
  ++launches;
  if (!error.empty()) return;  // as on a GPU, nothing runs after an error
  error = check_launch(kernel, grid, size, shared);
  if (!error.empty()) return;
  Random random(settings.seed + static_cast<uint64_t>(launches));
  const std::vector<int> order = random.order(static_cast<int>(grid.count()), settings.blocks);
  blockDim = size, gridDim = grid;
  for (const int b : order) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    // Bytes of 0xff are NaN in both types. Its end is where an access beyond it is seen.
    struct alignas(16) Piece {
      unsigned char bytes[16];
    };
    std::vector<Piece> memory((shared + 15) / 16);
    if (shared > 0) std::memset(static_cast<void*>(memory.data()), 0xff, memory.size() * 16);
    std::fill(__start_emulated_shared, __stop_emulated_shared, static_cast<unsigned char>(0xff));
    shared_bytes = reinterpret_cast<unsigned char*>(memory.data());
    Block running(size, fibers());
    block = &running;
    error = running.run(body, random.next());
    block = nullptr, shared_bytes = nullptr;
    if (!error.empty()) return;
  }
  switches = fibers().switches();
}

}  // namespace emulation

inline void __syncthreads(int line = __builtin_LINE()) { emulation::block->sync(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  emulation::block->part(emulation::block->meet(mask, nullptr, 0, line, true));
}
inline double sinpi(double x) { return std::sin(3.141592653589793 * std::remainder(x, 2.0)); }
inline double cospi(double x) { return std::cos(3.141592653589793 * std::remainder(x, 2.0)); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::block->lane();
  return emulation::block->shuffle(mask, value, lane / width * width + source % width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::block->lane(), source = lane ^ other;
  const bool there = source / width <= lane / width;
  return emulation::block->shuffle(mask, value, there ? source : lane, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   int line = __builtin_LINE()) {
  const int lane = emulation::block->lane(), source = lane + static_cast<int>(by);
  return emulation::block->shuffle(mask, value, source / width == lane / width ? source : lane,
                                   line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::block->lane(), source = lane - static_cast<int>(by);
  const bool there = source >= lane / width * width;
  return emulation::block->shuffle(mask, value, there ? source : lane, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const emulation::Unseen unseen;
  const unsigned char own = predicate != 0;
  emulation::Warp& warp = emulation::block->meet(mask, &own, 1, line);
  unsigned found = 0;
  for (int l = 0; l < emulation::kWarp; ++l)
    if ((mask >> l & 1u) != 0 && warp.value[l][0] != 0) found |= 1u << l;
  emulation::block->part(warp);
  return found;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

// Threads change places at barriers only, so a plain read and write is atomic.
template <typename T>
T atomicAdd(T* at, T by) {
  const emulation::Unseen unseen;
  const T old = *at;
  *at = old + by;
  return old;
}
template <typename T>
T atomicMax(T* at, T by) {
  const emulation::Unseen unseen;
  const T old = *at;
  *at = std::max(old, by);
  return old;
}
template <typename T>
T atomicCAS(T* at, T expected, T wanted) {
  const emulation::Unseen unseen;
  const T old = *at;
  if (old == expected) *at = wanted;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
T __ldg(const T* p) {
  return *p;
}

// Asking clears it, as cudaGetLastError; the message stays for cudaGetErrorString.
namespace emulation {
inline std::string last_message;
}
inline cudaError_t cudaGetLastError() {
  if (emulation::error.empty()) return cudaSuccess;
  emulation::last_message = std::exchange(emulation::error, std::string());
  return cudaErrorLaunchFailure;
}
inline const char* cudaGetErrorString(cudaError_t) { return emulation::last_message.c_str(); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
template <typename F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > emulation::kMostShared) {
    emulation::last_message = "more shared memory than a device has";
    return cudaErrorInvalidValue;
  }
  emulation::allowed_shared[reinterpret_cast<void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

namespace pylandscape::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t,
            const Arguments&... arguments) {
  const emulation::Unseen unseen;
  // A kernel's parameters are copies, made at the launch.
  const std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  emulation::run_grid(reinterpret_cast<void*>(kernel), grid, block, shared,
                      [&] { std::apply(kernel, copies); });
}

template <typename F>
cudaError_t allow_shared(F* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(emulation::kMostShared));
}

inline unsigned char* dynamic_shared() { return emulation::shared_bytes; }

}  // namespace pylandscape::cuda
