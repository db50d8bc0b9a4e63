// x86's matrix registers (AMX): eight, each of 16 rows of 64 bytes, of which one instruction multiplies 16 rows of 32
// bfloat16 with 32 rows (in pairs) of 16 columns. Where the machine or the system has none there is nothing here.
// Every sum is added up in the same order whatever the other rows are, as the vectors' are, but in another one than theirs.
#pragma once
#include <cstdint>

#include "simd.h"

#if defined(GRAFT_NATIVE_BF16) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define GRAFT_AMX 1
#endif

namespace graft {

constexpr int kMatrixRows = 16;
constexpr int64_t kMatrixLanes = 16;  // pairs of bfloat16 of a row

#ifdef GRAFT_AMX

// Whether the system lets this process use them: it must have been asked before.
inline bool has_matrices() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

// This thread's registers as one piece of work needs them: 0 to 5 are sums and 6 inputs, of `rows` rows; 7 weights.
class Matrices {
 public:
  explicit Matrices(int rows) {
    for (int i = 0; i < 8; i++) shape_.rows[i] = i == 7 ? kMatrixRows : rows, shape_.bytes[i] = kLine;
    asm volatile("" ::: "memory");  // gcc 12 takes the intrinsic to read eight bytes
    _tile_loadconfig(&shape_);
  }
  ~Matrices() { _tile_release(); }
  Matrices(const Matrices&) = delete;

 private:
  struct alignas(kLine) Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  };
  Shape shape_;
};

// Sums of one or two times as many rows as the registers were made for, over `steps` times 32 inputs, in three times 16
// columns. `second`: from the first rows to the others. `next`: `Ahead` lines of memory from there on are asked for in
// every step, as far as the second cache: the first one holds less than a panel. `sums`: [Blocks, 16, 48].
template <int Blocks, int Ahead>
inline void multiply_matrices(const bf16* in, int64_t stride, int64_t second, const int32_t* panel, int64_t steps,
                              uintptr_t next, float* sums) {
  constexpr int width = 3 * kLanes;
  constexpr int64_t line = width * 4;
  const auto ask_ahead = [&] {  // a third of them: in between, so that the weights' own loads don't queue behind them
    for (int i = 0; i < Ahead / 3; i++, next += kLine) __builtin_prefetch((const void*)next, 0, 2);
  };
  const int64_t row = stride * (int64_t)sizeof(bf16);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  if constexpr (Blocks == 2) {
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
  }
  for (int64_t k = 0; k < steps; k++, in += 2 * kMatrixLanes, panel += kMatrixLanes * width) {
    _tile_loadd(6, in, row);
    ask_ahead();
    _tile_loadd(7, panel, line);
    _tile_dpbf16ps(0, 6, 7);
    ask_ahead();
    _tile_loadd(7, panel + kLanes, line);
    _tile_dpbf16ps(1, 6, 7);
    ask_ahead();
    _tile_loadd(7, panel + 2 * kLanes, line);
    _tile_dpbf16ps(2, 6, 7);
    if constexpr (Blocks == 2) {
      _tile_loadd(6, in + second, row);
      _tile_dpbf16ps(5, 6, 7);
      _tile_loadd(7, panel + kLanes, line);
      _tile_dpbf16ps(4, 6, 7);
      _tile_loadd(7, panel, line);
      _tile_dpbf16ps(3, 6, 7);
    }
  }
  _tile_stored(0, sums, line);
  _tile_stored(1, sums + kLanes, line);
  _tile_stored(2, sums + 2 * kLanes, line);
  if constexpr (Blocks == 2) {
    sums += kMatrixRows * width;
    _tile_stored(3, sums, line);
    _tile_stored(4, sums + kLanes, line);
    _tile_stored(5, sums + 2 * kLanes, line);
  }
}

#endif

}  // namespace graft
