// Vectors of floats begin at a line, however they grew, were copied or swapped. The sizes are such that a heap would give other places.
#include <cstdio>

#include "memory.h"

int main() {
  std::vector<graft::Floats> kept;
  std::vector<std::vector<char>> between;
  for (int size = 1; size < 400; size++) {
    between.emplace_back(size);
    graft::Floats made(size), copied = made, grown;
    for (int i = 0; i < size; i++) grown.push_back(i);
    for (graft::Floats* one : {&made, &copied, &grown}) {
      if ((uintptr_t)one->data() % 64) return std::printf("of %d floats: %p\n", size, (void*)one->data()), 1;
      kept.push_back(std::move(*one));
    }
  }
  return 0;
}
