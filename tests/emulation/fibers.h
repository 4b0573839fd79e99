// Fibers on one operating-system thread, resumed in a chosen order (POSIX ucontext). Under the
// address and thread sanitizers every switch is announced; to the thread sanitizer each fiber is a
// thread, and what passes between fibers without a barrier is a data race.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#define PL_UNSEEN __attribute__((no_sanitize("thread")))

namespace emulation {

// While it lives, the thread sanitizer looks away: what the emulation itself reads and writes is not
// the kernel's. A fiber must not end, or be left for good, within one.
class Unseen {
 public:
#if defined(__SANITIZE_THREAD__)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
#endif
  Unseen(const Unseen&) = delete;
};

enum class Order : int { kForward, kReversed, kShuffled };

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::vector<int> order(int count, Order kind) {
    std::vector<int> all(count);
    std::iota(all.begin(), all.end(), 0);
    if (kind == Order::kReversed) std::reverse(all.begin(), all.end());
    if (kind == Order::kShuffled)
      for (int i = count - 1; i > 0; --i) std::swap(all[i], all[next() % (i + 1)]);
    return all;
  }

 private:
  uint64_t state_;
};

class Fibers {
 public:
  static constexpr const char* kStuck = "stuck";
  static constexpr size_t kStack = 256 << 10;

  ~Fibers() {
    for (const auto& fiber : all_) munmap(fiber->stack, kStack);
  }

  // Runs body() in `count` fibers to their end; enter(i) is called before fiber i goes on. Returns
  // what failed, kStuck where all that are left wait, or nothing.
  std::string run(int count, const std::function<void()>& body,
                  const std::function<void(int)>& enter, Order order, uint64_t seed) {
    body_ = &body;
    failure_.clear();
    while (static_cast<int>(all_.size()) < count) all_.push_back(make());
    for (int i = 0; i < count; ++i) start(*all_[i]);
    release(&started_);
#if defined(__SANITIZE_THREAD__)
    main_fiber_ = __tsan_get_current_fiber();
#endif
    Random random(seed);
    std::vector<int> turn = random.order(count, order);
    for (int left = count; left > 0;) {
      bool moved = false;
      if (order == Order::kShuffled) turn = random.order(count, order);
      for (const int i : turn) {
        Fiber& fiber = *all_[i];
        if (fiber.state != State::kReady) continue;
        moved = true;
        enter(i);
        resume(fiber);
        if (!failure_.empty()) return failure_;
        left -= fiber.state == State::kDone;
      }
      if (!moved) return kStuck;
    }
    acquire(&ended_);
    return "";
  }

  int64_t switches() const { return switches_; }

  // The rest is called by the running fiber.
  void wait() { current_->state = State::kWaits, leave(); }   // until it is woken
  void yield() { leave(); }                                   // the others first
  void fail(const std::string& what) {
    failure_ = what;
    current_->state = State::kWaits;
    leave();  // and never comes back
  }
  template <typename F>
  void wake(F which) {
    for (size_t i = 0; i < all_.size(); ++i)
      if (all_[i]->state == State::kWaits && which(static_cast<int>(i)))
        all_[i]->state = State::kReady;
  }
  // What was done before a release is visible after the acquire of the same place.
  void release(void* place) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(place);
#else
    static_cast<void>(place);
#endif
  }
  void acquire(void* place) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(place);
#else
    static_cast<void>(place);
#endif
  }

 private:
  enum class State { kReady, kWaits, kDone };
  struct Fiber {
    Fibers* owner = nullptr;
    ucontext_t context{};
    void* stack = nullptr;
    State state = State::kDone;
    void* sanitizer = nullptr;  // its thread
  };

  std::unique_ptr<Fiber> make() {
    auto fiber = std::make_unique<Fiber>();
    fiber->owner = this;
    fiber->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return fiber;
  }

  void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    const auto address = reinterpret_cast<uintptr_t>(&fiber);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Fibers::enter_first), 2,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
#if defined(__SANITIZE_THREAD__)
    if (fiber.sanitizer == nullptr || fiber.state != State::kDone)  // that of a failed run is left
      fiber.sanitizer = __tsan_create_fiber(0);
#endif
    fiber.state = State::kReady;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStack);  // of a run that failed
#endif
  }

  PL_UNSEEN static void enter_first(unsigned high, unsigned low) {
    Fiber& fiber = *reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low);
    Fibers& all = *fiber.owner;
    all.arrived(nullptr);
    all.acquire(&all.started_);
    (*all.body_)();
    {
      const Unseen unseen;
      all.release(&all.ended_);
      fiber.state = State::kDone;
    }
    all.leave();
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    ++switches_;
#if defined(__SANITIZE_ADDRESS__)
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, fiber.stack, kStack);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&main_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
  }

  PL_UNSEEN void leave() {
    Fiber& fiber = *current_;
#if defined(__SANITIZE_ADDRESS__)
    void* own = nullptr;  // a fiber that is done gives its fake stack up
    __sanitizer_start_switch_fiber(fiber.state == State::kDone ? nullptr : &own, main_stack_,
                                   main_size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(main_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&fiber.context, &main_);
#if defined(__SANITIZE_ADDRESS__)
    arrived(own);
#endif
  }

  void arrived(void* own) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own, &main_stack_, &main_size_);
#else
    static_cast<void>(own);
#endif
  }

  std::vector<std::unique_ptr<Fiber>> all_;
  Fiber* current_ = nullptr;
  ucontext_t main_{};
  const std::function<void()>* body_ = nullptr;
  std::string failure_;
  int64_t switches_ = 0;
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
  void* main_fiber_ = nullptr;
  char started_ = 0, ended_ = 0;  // places
};

}  // namespace emulation
