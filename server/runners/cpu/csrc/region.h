// A parallel region of the threads that torch uses.
#pragma once
#include <ATen/Parallel.h>
#include <omp.h>

#include "team.h"

namespace graft {

// Runs body(member) on all threads. Throws what one of them threw.
template <class Body>
void run_team(Body body) {
  Team team;
#pragma omp parallel num_threads(at::get_num_threads())
  {
    team.attempt([&] {
      Team::Member member(team);
      body(member);
    });
  }
  team.rethrow();
}

}  // namespace graft
