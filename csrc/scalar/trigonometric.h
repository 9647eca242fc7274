// Trigonometric functions of a Vector and their inverses.
#pragma once

#include "basic.h"

namespace torchad_ext {

// sin and cos reduce x = n pi/2 + r, |r| <= pi/4, and the quadrant n mod 4 tells which of +-sin r, +-cos r to take.
// pi/2 is a sum of three words, so that r keeps its leading digits also next to a multiple of pi. Beyond these bounds a
// float is computed in double and a double goes to the C library.
constexpr float reducible_float = 0x1p8f;
constexpr double reducible_double = 0x1p30;

struct ReducedFloat {
  Float r;
  Int32 quadrant;
};

inline ReducedFloat reduce_by_half_pi(Float x) {
  const Float rounded = fma(x, broadcast(0x1.45f306p-1f), broadcast(round_float));
  const Float n = rounded - round_float;
  Float r = fma(-n, broadcast(0x1.921fb6p0f), x);
  r = fma(-n, broadcast(-0x1.777a5cp-25f), r);
  r = fma(-n, broadcast(-0x1.ee59dap-50f), r);
  return {r, (Int32)rounded};
}

// Relative error of the polynomials: 2^-27 and 2^-32.
inline Float sin_polynomial(Float r) {
  const Float z = r * r;
  Float p = fma(z, broadcast(-0x1.9919dp-13f), broadcast(0x1.1106c2p-7f));
  p = fma(z, p, broadcast(-0x1.555544p-3f));
  return fma(r * z, p, r);
}
inline Float cos_polynomial(Float r) {
  const Float z = r * r;
  Float p = fma(z, broadcast(0x1.99db8ap-16f), broadcast(-0x1.6c0c0ep-10f));
  p = fma(z, p, broadcast(0x1.55554ap-5f));
  p = fma(z, p, broadcast(-0.5f));
  return fma(z, p, broadcast(1.0f));
}

// In double the reduced argument keeps a tail, r + tail, which halves the error.
struct ReducedDouble {
  Double r, tail;
  Int64 quadrant;
};

inline ReducedDouble reduce_by_half_pi(Double x) {
  const Double rounded = fma(x, broadcast(0x1.45f306dc9c883p-1), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double half_pi1 = broadcast(0x1.1a62633145c07p-54);
  const Double first = fma(-n, broadcast(0x1.921fb54442d18p0), x);  // exact
  const Double second = n * half_pi1;
  const Double second_tail = fma(n, half_pi1, -second);  // exact
  const Double r = first - second;
  const Double tail = fma(-n, broadcast(-0x1.f1976b7ed8fbcp-110), ((first - r) - second) - second_tail);
  return {r, tail, (Int64)rounded};
}

// Relative error of the polynomials: 2^-57 and 2^-63.
inline Double sin_polynomial(Double r, Double tail) {
  const Double z = r * r;
  Double p = fma(z, broadcast(0x1.5d8e624f8bcbap-33), broadcast(-0x1.ae5e550039428p-26));
  p = fma(z, p, broadcast(0x1.71de355fa4c72p-19));
  p = fma(z, p, broadcast(-0x1.a01a019bf2b7dp-13));
  p = fma(z, p, broadcast(0x1.111111110f76p-7));
  p = fma(z, p, broadcast(-0x1.5555555555548p-3));
  return r + fma(r * z, p, tail * fma(z, broadcast(-0.5), broadcast(1.0)));
}
inline Double cos_polynomial(Double r, Double tail) {
  const Double z = r * r;
  Double p = fma(z, broadcast(-0x1.8fb16360d8b6p-37), broadcast(0x1.1ee9f1b06dc6cp-29));
  p = fma(z, p, broadcast(-0x1.27e4f81336569p-22));
  p = fma(z, p, broadcast(0x1.a01a019cbff9p-16));
  p = fma(z, p, broadcast(-0x1.6c16c16c15223p-10));
  p = fma(z, p, broadcast(0x1.555555555554cp-5));
  const Double head = fma(z, broadcast(-0.5), broadcast(1.0));
  const Double head_tail = fma(z, broadcast(-0.5), 1.0 - head);
  return head + (head_tail + fma(z * z, p, -r * tail));
}

// Error below 0.8 ulp.
inline Double sin(Double x) {
  const auto [r, tail, quadrant] = reduce_by_half_pi(abs(x));
  const Double y = (quadrant & 1) != 0 ? cos_polynomial(r, tail) : sin_polynomial(r, tail);
  if (__builtin_expect(all_within(abs(x), reducible_double), 1)) return flip(y, quadrant << 62 ^ (Int64)x);
  return each_lane(x, [](double v) { return std::sin(v); });
}
inline Double cos(Double x) {
  const auto [r, tail, quadrant] = reduce_by_half_pi(abs(x));
  const Double y = (quadrant & 1) != 0 ? sin_polynomial(r, tail) : cos_polynomial(r, tail);
  if (__builtin_expect(all_within(abs(x), reducible_double), 1)) return flip(y, (quadrant + 1) << 62);
  return each_lane(x, [](double v) { return std::cos(v); });
}

// At most one float away from the correctly rounded result.
inline Float sin(Float x) {
  const auto [r, quadrant] = reduce_by_half_pi(abs(x));
  const Float y = (quadrant & 1) != 0 ? cos_polynomial(r) : sin_polynomial(r);
  if (__builtin_expect(all_within(abs(x), reducible_float), 1)) return flip(y, quadrant << 30 ^ (Int32)x);
  return in_double(x, [](Double v) { return sin(v); });
}
inline Float cos(Float x) {
  const auto [r, quadrant] = reduce_by_half_pi(abs(x));
  const Float y = (quadrant & 1) != 0 ? sin_polynomial(r) : cos_polynomial(r);
  if (__builtin_expect(all_within(abs(x), reducible_float), 1)) return flip(y, (quadrant + 1) << 30);
  return in_double(x, [](Double v) { return cos(v); });
}

}  // namespace torchad_ext
