// Vectors of 32-bit lanes as wide as the machine's registers, in GCC's portable vector types. (Wider ones would work
// too, but the compiler keeps those in memory: measured, 50 times slower on AVX2.)
// A lane of weights holds one float or two bfloat16; `dp` multiplies lane by lane and adds up in float.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#ifdef __AVX512BF16__
#define GRAFT_NATIVE_BF16 1
#endif
#endif

namespace graft {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif
constexpr int kLine = 64;  // bytes of memory that are fetched together
typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint16_t H __attribute__((vector_size(2 * kLanes)));
typedef uint16_t W __attribute__((vector_size(4 * kLanes)));

struct bf16 {
  uint16_t bits;
};

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// The first `bytes` of a vector, zeros behind them.
template <class V>
inline V load_part(const void* from, int64_t bytes) {
  if (bytes >= (int64_t)sizeof(V)) return load<V>(from);
  V v = {};
  std::memcpy(&v, from, bytes);
  return v;
}

// Fetches the line so many bytes ahead into the cache. It may lie behind the end: it is an address, not a pointer.
inline void fetch(const void* from, int64_t ahead) { __builtin_prefetch((const void*)((uintptr_t)from + ahead)); }

// Asks for memory that is needed soon.
inline void ask(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) fetch(from, i);
}

// 0, 1, 2, ...
inline I count_up() {
  I v;
  for (int i = 0; i < kLanes; i++) v[i] = i;
  return v;
}

inline F splat(float x) { return x - F{}; }
inline F choose(I mask, F yes, F no) { return mask ? yes : no; }
// Where b is a NaN so is the result; one in a may be lost. (It is one instruction, and who compares with a bound has it in a.)
inline F vmax(F a, F b) { return choose(a > b, a, b); }
inline F vmin(F a, F b) { return choose(a < b, a, b); }

inline float sum(F v) {
  float total[kLanes];
  std::memcpy(total, &v, sizeof v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; i++) total[i] += total[i + width];
  return total[0];
}

inline float largest(F v) {
  float most = v[0];
  for (int i = 1; i < kLanes; i++) most = v[i] > most ? v[i] : most;
  return most;
}

// ---- storage types -----------------------------------------------------------------------------------------

// How many values of S share a lane, and what a vector of such lanes is once it is loaded: V, of kWords registers.
template <class S>
struct Packed;

template <>
struct Packed<float> {
  static constexpr int per_lane = 1, kWords = 1;
  typedef F V;
  static V unpack(I raw) { return (F)raw; }
  static F dp(F total, F a, F b) { return total + a * b; }
};

template <>
struct Packed<bf16> {
  static constexpr int per_lane = 2;
#ifdef GRAFT_NATIVE_BF16
  static constexpr int kWords = 1;
  typedef I V;
  static V unpack(I raw) { return raw; }
  static F dp(F total, I a, I b) { return (F)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b); }
#else
  static constexpr int kWords = 2;
  struct V {
    F low, high;
  };
  static V unpack(I raw) { return {(F)(raw << 16), (F)(raw & (I)(U{} + 0xffff0000u))}; }
  static F dp(F total, V a, V b) { return total + a.low * b.low + a.high * b.high; }
#endif
};

template <class S>
inline typename Packed<S>::V load_lanes(const void* from) {
  return Packed<S>::unpack(load<I>(from));
}

// The first `bytes` of such a vector, zeros behind them.
template <class S>
inline typename Packed<S>::V load_lanes(const void* from, int64_t bytes) {
  return Packed<S>::unpack(load_part<I>(from, bytes));
}

// One lane of S (one float, two bfloat16) in every lane.
template <class S>
inline typename Packed<S>::V splat_lane(const S* from) {
  int32_t lane;
  std::memcpy(&lane, from, sizeof lane);
  return Packed<S>::unpack(lane - I{});
}

// The first `left` columns, which may be more than there is room for, of as many rows as a lane holds: a column's values together
// in a lane, in `vectors` vectors. Zeros behind them.
template <int vectors>
inline void side_by_side(const float* const (&rows)[1], int64_t left, F (&to)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; v++) to[v] = load_part<F>(rows[0] + v * kLanes, std::max<int64_t>(0, left - v * kLanes) * 4);
}

// a0 b0 a1 b1 ...: the first half, then the second.
template <size_t... place>
inline std::pair<I, I> zipped(W a, W b, std::index_sequence<place...>) {
  return {(I)__builtin_shufflevector(a, b, (int)(place / 2 + place % 2 * 2 * kLanes)...),
          (I)__builtin_shufflevector(a, b, (int)(kLanes + place / 2 + place % 2 * 2 * kLanes)...)};
}

template <int vectors>
inline void side_by_side(const bf16* const (&rows)[2], int64_t left, Packed<bf16>::V (&to)[vectors]) {
  static_assert(vectors % 2 == 0);
#pragma GCC unroll 4
  for (int v = 0; v < vectors; v += 2) {
    const int64_t bytes = std::max<int64_t>(0, left - v * kLanes) * 2;
    const auto [low, high] = zipped(load_part<W>(rows[0] + v * kLanes, bytes), load_part<W>(rows[1] + v * kLanes, bytes),
                                    std::make_index_sequence<2 * kLanes>());
    to[v] = Packed<bf16>::unpack(low), to[v + 1] = Packed<bf16>::unpack(high);
  }
}

inline F widen(const float* from, int n = kLanes) { return load_part<F>(from, n * 4); }

inline F widen(const bf16* from, int n = kLanes) {
  const H half = load_part<H>(from, n * 2);
#ifdef __AVX512F__
  return (F)((I)_mm512_cvtepu16_epi32((__m256i)half) << 16);  // of one conversion GCC 12 makes two, and puts them together
#else
  return (F)(__builtin_convertvector(half, U) << 16);
#endif
}

// The first `bytes` of a vector. Whole ones are one store: a copy of a length unknown to the compiler is slow.
template <class V>
inline void store_part(void* to, V v, int64_t bytes) {
  if (bytes >= (int64_t)sizeof v)
    std::memcpy(to, &v, sizeof v);
  else
    std::memcpy(to, &v, bytes);
}

inline void narrow(float* to, F v, int n = kLanes) { store_part(to, v, n * 4); }

inline void narrow(bf16* to, F v, int n = kLanes) {
#ifdef GRAFT_NATIVE_BF16
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
  const U bits = (U)v;
  const U even = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  const I nan = v != v;
  const H h = __builtin_convertvector((U)(((I)even & ~nan) | ((I)(bits | 0x400000u) & nan)) >> 16, H);
#endif
  store_part(to, h, n * 2);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// ---- functions ---------------------------------------------------------------------------------------------

// Two by two, `distance` apart: for distance 1 {a0 b0 a2 b2 ...} and {a1 b1 a3 b3 ...}.
template <int distance, size_t... place>
inline std::pair<F, F> exchanged(F a, F b, std::index_sequence<place...>) {
  constexpr int d = distance;
  return {__builtin_shufflevector(a, b, (int)(place & d ? place - d + kLanes : place)...),
          __builtin_shufflevector(a, b, (int)(place & d ? place + kLanes : place + d)...)};
}

// Lane i of v[j] becomes lane j of v[i].
template <int distance = 1>
inline void transpose(F (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if ((i & distance) == 0)
      std::tie(v[i], v[i | distance]) = exchanged<distance>(v[i], v[i | distance], std::make_index_sequence<kLanes>());
  if constexpr (2 * distance < kLanes) transpose<2 * distance>(v);
}

// Lane i of the result: the sum of all lanes of v[i]. Every v is summed in the same order.
template <int distance = 1>
inline F sums(F (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes / 2 / distance; i++) {
    const auto [even, odd] = exchanged<distance>(v[2 * i], v[2 * i + 1], std::make_index_sequence<kLanes>());
    v[i] = even + odd;
  }
  if constexpr (2 * distance < kLanes) return sums<2 * distance>(v);
  return v[0];
}

// e^x to about two units in the last place: 2^n * e^r, |r| <= ln(2)/2, by the Taylor series of e^r. Zero below -87.3,
// infinite above 88.37, where 2^n is; a NaN stays one.
inline F vexp(F x) {
  constexpr float whole_numbers = 0x1.8p23f;  // added to a number, it leaves the nearest whole one in the last bits
  const F clipped = vmin(splat(89.f), vmax(splat(-87.3f), x));
  const F biased = clipped * 1.44269504f + (whole_numbers + 127);
  const F n = biased - (whole_numbers + 127);
  const F r = (clipped - n * 0.693359375f) - n * -2.12194440e-4f;
  F power = r * (1.f / 5040) + 1.f / 720;
  power = power * r + 1.f / 120;
  power = power * r + 1.f / 24;
  power = power * r + 1.f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.f;
  power = power * r + 1.f;
  return choose(x < -87.3f, F{}, power * (F)((I)biased << 23));
}

inline F vsigmoid(F x) { return 1.f / (1.f + vexp(-x)); }
inline F vtanh(F x) { return 2.f * vsigmoid(2.f * x) - 1.f; }

}  // namespace graft
