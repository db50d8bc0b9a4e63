// Sixteen 32-bit lanes, in GCC's portable vector types: the compiler maps them to whatever the machine has.
// A lane of weights holds one float or two bfloat16; `dp` multiplies lane by lane and adds up in float.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define GRAFT_NATIVE_BF16 1
#endif

namespace graft {

constexpr int kLanes = 16;
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

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

// Asks for memory that is needed soon.
inline void ask(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)from + i);
}

inline F splat(float x) { return x - F{}; }
inline F choose(I mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }
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

// How many values of S share a lane, and what a vector of such lanes is.
template <class S>
struct Packed;

template <>
struct Packed<float> {
  static constexpr int per_lane = 1;
  typedef F V;
  static F dp(F total, F a, F b) { return total + a * b; }
};

template <>
struct Packed<bf16> {
  static constexpr int per_lane = 2;
  typedef I V;
  static F dp(F total, I a, I b) {
#ifdef GRAFT_NATIVE_BF16
    return (F)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
    const I high = (I)(U{} + 0xffff0000u);
    total += (F)(a << 16) * (F)(b << 16);
    return total + (F)(a & high) * (F)(b & high);
#endif
  }
};

// One lane of S (one float, two bfloat16) in every lane.
template <class S>
inline typename Packed<S>::V splat_lane(const S* from) {
  int32_t lane;
  std::memcpy(&lane, from, sizeof lane);
  return (typename Packed<S>::V)(lane - I{});
}

inline F widen(const float* from, int n = kLanes) { return load_part<F>(from, n * 4); }

inline F widen(const bf16* from, int n = kLanes) {
  return (F)(__builtin_convertvector(load_part<H>(from, n * 2), U) << 16);
}

inline void narrow(float* to, F v, int n = kLanes) { std::memcpy(to, &v, n * 4); }

inline void narrow(bf16* to, F v, int n = kLanes) {
#ifdef GRAFT_NATIVE_BF16
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
  const U bits = (U)v;
  const U even = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  const I nan = v != v;
  const H h = __builtin_convertvector((U)(((I)even & ~nan) | ((I)(bits | 0x400000u) & nan)) >> 16, H);
#endif
  if (n >= kLanes)
    std::memcpy(to, &h, 32);
  else
    std::memcpy(to, &h, n * 2);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// ---- functions ---------------------------------------------------------------------------------------------

// Lane i of the result: the sum of all lanes of v[i]. Every v is summed in the same order.
inline F sums(F (&v)[kLanes]) {
  for (int i = 0; i < 8; i++)
    v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  for (int i = 0; i < 4; i++)
    v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  for (int i = 0; i < 2; i++)
    v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  return __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(v[0], v[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// e^x to about two units in the last place: 2^n * e^r, |r| <= ln(2)/2, by the Taylor series of e^r.
inline F vexp(F x) {
  const F clipped = vmin(vmax(x, splat(-87.3f)), splat(88.3f));
  const I n = __builtin_convertvector(clipped * 1.44269504f + choose(clipped > 0, splat(0.5f), splat(-0.5f)), I);
  const F whole = __builtin_convertvector(n, F);
  const F r = (clipped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  F power = r * (1.f / 5040) + 1.f / 720;
  power = power * r + 1.f / 120;
  power = power * r + 1.f / 24;
  power = power * r + 1.f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.f;
  power = power * r + 1.f;
  return choose(x < -87.3f, F{}, power * (F)((n + 127) << 23));
}

inline F vsigmoid(F x) { return 1.f / (1.f + vexp(-x)); }
inline F vtanh(F x) { return 2.f * vsigmoid(2.f * x) - 1.f; }

}  // namespace graft
