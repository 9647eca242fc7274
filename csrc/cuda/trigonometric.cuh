// sin and cos of a float on the device.
//
// CUDA's have the reduction of huge arguments inline, in local memory: unrolled over the elements of a thread a kernel
// grows beyond the instruction cache. Here it is a call that next to no element makes.
#pragma once

#include <cstdint>
#include <cstring>

namespace torchad_ext {

TORCHAD_EXT_FUNCTION uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
TORCHAD_EXT_FUNCTION float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// x = n pi/2 + r, |r| <= pi/4. pi/2 is a sum of three words, none of them negative, so that -0 stays what it is; x less
// n times the first is exact.
constexpr float reducible = 0x1p16f;

struct Reduced {
  float r;
  uint32_t quadrant;  // n mod 4 in the last bits
};

TORCHAD_EXT_FUNCTION Reduced reduce_by_half_pi(float x) {
  constexpr float round = 0x1.8p23f;
  const float rounded = fmaf(x, 0x1.45f306p-1f, round);
  const float n = rounded - round;
  float r = fmaf(n, -0x1.921fb4p0f, x);
  r = fmaf(n, -0x1.4442dp-24f, r);
  r = fmaf(n, -0x1.84698ap-48f, r);
  return {r, bits_of(rounded)};
}

// Relative error of the polynomials: 2^-27 and 2^-32.
TORCHAD_EXT_FUNCTION float sin_polynomial(float r, float z) {
  float p = fmaf(z, -0x1.9919dp-13f, 0x1.1106c2p-7f);
  p = fmaf(z, p, -0x1.555544p-3f);
  return fmaf(fmaf(r, z, 0.0f), p, r);  // the sum with 0 is +0 for r = -0, and the result -0
}
TORCHAD_EXT_FUNCTION float cos_polynomial(float z) {
  float p = fmaf(z, 0x1.99db8ap-16f, -0x1.6c0c0ep-10f);
  p = fmaf(z, p, 0x1.55554ap-5f);
  p = fmaf(z, p, -0.5f);
  return fmaf(z, p, 1.0f);
}

// Both polynomials, which sin and cos of one argument share, and a choice without a branch.
TORCHAD_EXT_FUNCTION float sin_by_quadrant(float r, uint32_t quadrant) {
  const float z = r * r;
  const float s = sin_polynomial(r, z), c = cos_polynomial(z);
  const float y = quadrant & 1 ? c : s;
  return float_of(bits_of(y) ^ (quadrant << 30 & 0x80000000u));
}

__host__ __device__ __attribute__((noinline)) inline float sin_of_huge(float x) { return sinf(x); }
__host__ __device__ __attribute__((noinline)) inline float cos_of_huge(float x) { return cosf(x); }

// Error below 1.6 ulp.
TORCHAD_EXT_FUNCTION float sin(float x) {
  const Reduced reduced = reduce_by_half_pi(x);
  const float y = sin_by_quadrant(reduced.r, reduced.quadrant);
  return fabsf(x) <= reducible ? y : sin_of_huge(x);
}
TORCHAD_EXT_FUNCTION float cos(float x) {
  const Reduced reduced = reduce_by_half_pi(x);
  const float y = sin_by_quadrant(reduced.r, reduced.quadrant + 1);
  return fabsf(x) <= reducible ? y : cos_of_huge(x);
}

TORCHAD_EXT_FUNCTION double sin(double x) { return ::sin(x); }
TORCHAD_EXT_FUNCTION double cos(double x) { return ::cos(x); }

}  // namespace torchad_ext
