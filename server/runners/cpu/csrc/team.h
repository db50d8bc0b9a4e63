// The threads of one parallel region and how they share work: items are taken one by one, and the next phase begins
// when all are done, whoever did them. A thread that has no core holds nobody up, unless it is in the middle of an item; so
// threads offer their core to other processes between items, halfway through their time slice. Whoever waits spins
// briefly and then sleeps: a thread that spins on a busy machine would take the very core that the thread it waits for
// needs (measured: 1.2 s instead of 25 ms a step with libgomp's own barriers).
// An exception must not leave a region, nor its item keep the others waiting: it is kept, and thrown after the region.
#pragma once
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace graft {

class Team {
 public:
  // One thread's place in the phases, which all threads go through in the same order.
  class Member {
   public:
    explicit Member(Team& team) : team_(team) {}

    // Calls work(i) for every i < items that no other thread has taken, and returns when all are done. A phase that
    // ended while this thread had no core is passed over.
    template <class Work>
    void share(int64_t items, Work work) {
      if (items == 0) return;
      const uint32_t phase = phase_++;
      if (team_.phase_.load(std::memory_order_acquire) != phase) return;
      int64_t did = 0;
      for (int64_t item; (item = team_.take(phase, items)) >= 0;) {
        team_.attempt([&] { work(item); });
        did++;
        if (!turn_is_over()) continue;
        if (team_.report(phase, std::exchange(did, 0), items)) return;
        offer_core();
      }
      if (did == 0 || !team_.report(phase, did, items)) team_.await_end(phase);
    }

   private:
    bool turn_is_over() const {
      static const auto turn = time_slice() / 2;
      return std::chrono::steady_clock::now() - since_ >= turn;
    }

    // Sooner or later the scheduler would take it in the middle of an item, and all would wait for this one.
    void offer_core() {
      sched_yield();
      since_ = std::chrono::steady_clock::now();
    }

    Team& team_;
    uint32_t phase_ = 0;
    std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  };

  // Does `work`; the first exception of any thread is kept.
  template <class Work>
  void attempt(Work work) noexcept {
    try {
      work();
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  // After the region: throws what was kept.
  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int kSpins = 2000;  // some tens of microseconds

  // How long the scheduler lets a thread run while others wait: its own word, but at least a tick, for it looks no
  // oftener. A thread that offers its core gives away the rest: after an eighth of a slice, steps beside two busy
  // processes took 3 times as long as alone, after a half 2.1 times.
  static std::chrono::nanoseconds time_slice() {
#if defined(__linux__)
    timespec slice{}, tick{};
    sched_rr_get_interval(0, &slice);
    clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
    const auto nanoseconds = [](const timespec& t) { return std::chrono::nanoseconds(t.tv_sec * 1000000000 + t.tv_nsec); };
    return std::max(nanoseconds(slice), nanoseconds(tick));
#else
    return std::chrono::milliseconds(10);
#endif
  }

  // The next item of a phase; -1 where none is left. The counter has the phase beside it: a thread that was late must
  // not take an item of a later one.
  int64_t take(uint32_t phase, int64_t items) {
    uint64_t next = next_.load(std::memory_order_relaxed);
    do {
      if (next >> 32 != phase || (int64_t)(uint32_t)next >= items) return -1;
    } while (!next_.compare_exchange_weak(next, next + 1, std::memory_order_relaxed));
    return (uint32_t)next;
  }

  // So many more items are done; true where the last was among them, and the next phase has begun.
  bool report(uint32_t phase, int64_t did, int64_t items) {
    if (done_.fetch_add(did, std::memory_order_acq_rel) + did < items) return false;
    done_.store(0, std::memory_order_relaxed);
    next_.store((uint64_t)(phase + 1) << 32, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return true;
  }

  void await_end(uint32_t phase) {
    for (int spin = 0; spin < kSpins; spin++) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

  alignas(64) std::atomic<uint64_t> next_{0};  // phase << 32 | item
  alignas(64) std::atomic<int64_t> done_{0};   // items of the present phase
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace graft
