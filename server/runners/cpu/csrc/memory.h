// Memory for weights: in huge pages where the system has them, so that reading it does not wait for page tables.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace graft {

class Memory {
 public:
  Memory() = default;
  // Uninitialised; starts at a huge page.
  explicit Memory(int64_t bytes) {
    void* start = nullptr;
    if (posix_memalign(&start, kHugePage, bytes)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(start, bytes, MADV_HUGEPAGE);  // a wish: where it is not granted, ordinary pages serve
#endif
    data_.reset((char*)start);
  }
  char* data() const { return data_.get(); }

 private:
  static constexpr int64_t kHugePage = 2 << 20;
  struct Free {
    void operator()(char* start) const { std::free(start); }
  };
  std::unique_ptr<char, Free> data_;
};

}  // namespace graft
