// The team and its memory without torch and OpenMP, on threads of its own, so that ThreadSanitizer sees all there is.
// Prints what is wrong and ends with 1.
#include <cstdio>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "memory.h"
#include "team.h"

using namespace graft;

static void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("not so: %s\n", what.c_str());
  std::exit(1);
}

// As region.h does with OpenMP.
static void run(int threads, const std::function<void(Team::Member&, int)>& body) {
  Team team;
  std::vector<std::thread> all;
  for (int t = 0; t < threads; t++)
    all.emplace_back([&, t] {
      team.attempt([&] {
        Team::Member member(team);
        body(member, t);
      });
    });
  for (std::thread& thread : all) thread.join();
  team.rethrow();
}

// Every phase reads what all items of the one before have written.
static void phases_follow_each_other(int threads) {
  const int64_t items[] = {1, 5, 64, 0, 3, 200, 2};
  for (int round = 0; round < 40; round++) {
    std::vector<int64_t> before(256, 1), after(256, 0);
    std::vector<std::vector<int64_t>> values;
    for (int64_t count : items) values.emplace_back(count, -1);
    run(threads, [&](Team::Member& team, int) {
      int64_t last = -1;
      for (size_t p = 0; p < std::size(items); p++) {
        if (!items[p]) {
          team.share(0, [](int64_t) { std::abort(); });
          continue;
        }
        team.share(items[p], [&](int64_t i) {
          int64_t total = 1;
          if (last >= 0)
            for (int64_t value : values[last]) total += value;
          values[p][i] = total % 1000 + i;
        });
        last = p;
      }
    });
    std::vector<int64_t> previous;
    for (size_t p = 0; p < std::size(items); p++) {
      if (!items[p]) continue;
      int64_t total = 1;
      for (int64_t value : previous) total += value;
      for (int64_t i = 0; i < items[p]; i++) expect(values[p][i] == total % 1000 + i, "a phase saw another one unfinished");
      previous = values[p];
    }
  }
}

// The item that throws counts as done, all others are done, later phases too; one exception comes out, with its type.
template <class Error>
static void an_items_exception_comes_out_after_the_region(int threads, Error error) {
  for (int round = 0; round < 40; round++) {
    std::vector<std::atomic<int>> done(100);
    bool caught = false;
    try {
      run(threads, [&](Team::Member& team, int) {
        for (int p = 0; p < 5; p++)
          team.share(20, [&](int64_t i) {
            if (p == 2 && i % 7 == 3) throw error;
            done[p * 20 + i]++;
          });
      });
    } catch (const Error&) {
      caught = true;
    }
    expect(caught, "no exception came out");
    for (int at = 0; at < 100; at++) expect(done[at] == !(at / 20 == 2 && at % 20 % 7 == 3), "an item was left out or done twice");
  }
}

static void a_thread_that_leaves_holds_nobody_up(int threads) {
  std::atomic<int> done{0};
  bool caught = false;
  try {
    run(threads, [&](Team::Member& team, int thread) {
      if (thread == 0 && threads > 1) throw std::runtime_error("left");
      for (int p = 0; p < 10; p++) team.share(9, [&](int64_t) { done++; });
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(done == 90, "items were left out");
  expect(caught == (threads > 1), "the exception was lost");
}

static void rooms_begin_at_a_line_and_say_when_there_is_none() {
  Room<float> room;
  for (int64_t size : {1, 15, 16, 1000, 500, 100000}) {
    room.grow(size);
    expect((uintptr_t)room.data() % 64 == 0, "memory does not begin at a line");
    room.data()[size - 1] = 1.f;
  }
  bool refused = false;
  try {
    room.grow(int64_t{1} << 58);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  expect(refused, "memory that is not there was promised");
  room.grow(10);  // and it goes on
  room.data()[9] = 1.f;
}

int main() {
  for (int threads : {1, 2, 3, 7}) {
    phases_follow_each_other(threads);
    an_items_exception_comes_out_after_the_region(threads, std::runtime_error("on purpose"));
    an_items_exception_comes_out_after_the_region(threads, std::bad_alloc());
    a_thread_that_leaves_holds_nobody_up(threads);
  }
  rooms_begin_at_a_line_and_say_when_there_is_none();
}
