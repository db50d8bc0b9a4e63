// The threads of one parallel region and how they share work: items are taken one by one, and the next phase begins
// when all are done. Whoever waits spins briefly and then sleeps: a thread that spins on a busy machine would take the
// very core that the thread it waits for needs (measured: 1.2 s instead of 25 ms a step with libgomp's own barriers).
#pragma once
#include <ATen/Parallel.h>
#include <omp.h>

#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace graft {

class Team {
 public:
  // Calls work(i) for every i < items, shared out among the team. Every thread of the team has to call it.
  template <class Work>
  void share(int64_t items, Work work) {
    for (int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < items;
         i = next_.fetch_add(1, std::memory_order_relaxed))
      work(i);
    meet();
  }

  // Runs body(team) on all threads that torch uses.
  template <class Body>
  static void run(Body body) {
    Team team;
#pragma omp parallel num_threads(at::get_num_threads())
    {
#pragma omp single
      team.size_ = omp_get_num_threads();  // what was granted, not what was asked for
      body(team);
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some tens of microseconds

  void meet() {
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    for (int spin = 0; spin < kSpins; spin++) {
      if (round_.load(std::memory_order_acquire) != round) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    round_.wait(round, std::memory_order_acquire);
  }

  int size_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

}  // namespace graft
