// Memory that begins at a line of 64 bytes, so that no vector that is read or written lies across two of them: numbers lie in no
// other.
#pragma once
#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace graft {

constexpr int64_t kAlignment = 64;

struct Free {
  void operator()(void* start) const { std::free(start); }
};

// Uninitialised. Throws bad_alloc.
inline void* aligned(int64_t alignment, int64_t bytes) {
  void* start = nullptr;
  if (posix_memalign(&start, alignment, bytes)) throw std::bad_alloc();
  return start;
}

// Hands what was freed back to the system, where the allocator would keep it.
inline void give_back() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

// Memory for weights: in huge pages where the system has them, so that reading it does not wait for page tables.
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t bytes) : data_((char*)aligned(kHugePage, bytes)) {
#ifdef MADV_HUGEPAGE
    madvise(data_.get(), bytes, MADV_HUGEPAGE);  // a wish: where it is not granted, ordinary pages serve
#endif
  }
  char* data() const { return data_.get(); }

 private:
  static constexpr int64_t kHugePage = 2 << 20;
  std::unique_ptr<char, Free> data_;
};

// Room for intermediate values, which the next step finds as large as it was left.
template <class T>
class Room {
 public:
  // Room for so many values, of which nothing is kept where it has to grow. Throws bad_alloc: never asked for by the
  // threads of a parallel region, but before it.
  void grow(int64_t size) {
    if (size <= size_) return;
    size_ = 0;
    data_.reset();
    data_.reset((T*)aligned(kAlignment, size * sizeof(T)));
    size_ = size;
  }
  T* data() const { return data_.get(); }
  int64_t bytes() const { return size_ * sizeof(T); }

 private:
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

template <class T>
struct AlignedAllocator {
  typedef T value_type;
  AlignedAllocator() = default;
  template <class Other>
  AlignedAllocator(const AlignedAllocator<Other>&) {}
  T* allocate(size_t count) { return (T*)aligned(kAlignment, count * sizeof(T)); }
  void deallocate(T* start, size_t) { std::free(start); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};

// Numbers that kernels read as vectors: of norms, biases and scales, and what the sampler has of a row.
typedef std::vector<float, AlignedAllocator<float>> Floats;

}  // namespace graft
