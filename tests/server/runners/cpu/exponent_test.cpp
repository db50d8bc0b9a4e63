// e^x of every 4,999th float, of both infinities and of NaNs, beside that in double. Prints what is wrong and ends with 1.
#include <bit>
#include <cstdio>
#include <cstdlib>

#include "simd.h"

using namespace graft;

static double off(float x, float got) {  // in units of the last place
  const double exact = std::exp((double)x);
  return std::fabs(got - exact) / std::ldexp(1.0, std::ilogb(exact) - 23);
}

static bool is_right(uint32_t bits, uint32_t got) {
  if ((bits & 0x7fffffff) > 0x7f800000) return (got & 0x7fffffff) > 0x7f800000;
  const float x = std::bit_cast<float>(bits);
  if (x < -87.3f) return got == 0;
  if (x > 88.38f) return got == 0x7f800000;
  return x > 88.37f || off(x, std::bit_cast<float>(got)) < 2;  // between them it may be either
}

static void look(uint32_t bits) {
  F x = splat(0);
  std::memcpy(&x, &bits, sizeof bits);
  const U got = (U)vexp(x);
  if (is_right(bits, got[0])) return;
  std::printf("e^x of %08x is not %08x\n", bits, (uint32_t)got[0]);
  std::exit(1);
}

int main() {
  for (uint64_t bits = 0; bits < 1ull << 32; bits += 4999) look((uint32_t)bits);
  for (uint32_t bits : {0u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xc2ae999au}) look(bits);
}
