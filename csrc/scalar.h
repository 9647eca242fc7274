// The scalar mathematics of the functors in ops/, under the same names on host and device.
//
// On the device T is float or double and CUDA's accurate functions serve. On the host T is a Vector and the functions
// are polynomials without branches. Bounds are in units in the last place (ulp) of the exact result; the coefficients
// are minimax fits by Sollya's fpminimax. Nothing is computed with fast-math on either side.
#pragma once

#if defined(__CUDACC__)
#define TORCHAD_EXT_FUNCTION __host__ __device__ __forceinline__

namespace torchad_ext {
using ::cos;
using ::exp;
using ::sin;
}  // namespace torchad_ext

#else
#define TORCHAD_EXT_FUNCTION inline

#include "vector.h"

namespace torchad_ext {

inline Float abs(Float x) { return (Float)((Int32)x & INT32_MAX); }
inline Double abs(Double x) { return (Double)((Int64)x & INT64_MAX); }

// Flips the sign of y where the sign bit of `sign` is set.
inline Float flip(Float y, Int32 sign) { return (Float)((Int32)y ^ (sign & INT32_MIN)); }
inline Double flip(Double y, Int64 sign) { return (Double)((Int64)y ^ (sign & INT64_MIN)); }

// Adding it rounds to an integer, which is left in the low bits of the sum.
constexpr float round_float = 0x1.8p23f;
constexpr double round_double = 0x1.8p52;

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

// y 2^n in two factors, so that overflow and denormals round once.
inline Float scale(Float y, Int32 n) {
  const Int32 half = n >> 1;
  return y * (Float)((half + 127) << 23) * (Float)((n - half + 127) << 23);
}
inline Double scale(Double y, Int64 n) {
  const Int64 half = n >> 1;
  return y * (Double)((half + 1023) << 52) * (Double)((n - half + 1023) << 52);
}

// exp(x) = 2^n exp(r) with r = x - n log 2. `power` holds n in its low bits.
struct FloatExp {
  Float mantissa;  // exp(r)
  Int32 power;
};
inline FloatExp split_exp(Float x) {
  const Float rounded = fma(x, broadcast(0x1.715476p0f), broadcast(round_float));
  const Float n = rounded - round_float;
  const Float r = fma(-n, broadcast(-0x1.05c61p-29f), fma(-n, broadcast(0x1.62e43p-1f), x));
  Float p = fma(r, broadcast(0x1.695428p-10f), broadcast(0x1.123b08p-7f));
  p = fma(r, p, broadcast(0x1.555a22p-5f));
  p = fma(r, p, broadcast(0x1.55549p-3f));
  p = fma(r, p, broadcast(0x1.fffffap-2f));
  p = fma(r, p, broadcast(1.0f));
  return {fma(r, p, broadcast(1.0f)), (Int32)rounded - (Int32)broadcast(round_float)};
}

// Error below 0.9 ulp. The common path adds n to the exponent of exp(r).
inline Float exp(Float x) {
  if (__builtin_expect(all_within(abs(x), 87.0f), 1)) {
    const auto [mantissa, power] = split_exp(x);
    return (Float)((Int32)mantissa + (power << 23));
  }
  x = x > 89.0f ? broadcast(89.0f) : x;      // infinite from 88.73
  x = x < -104.0f ? broadcast(-104.0f) : x;  // zero below -103.97
  const auto [mantissa, power] = split_exp(x);
  return scale(mantissa, power);
}

struct DoubleExp {
  Double mantissa;
  Int64 power;
};
inline DoubleExp split_exp(Double x) {
  const Double rounded = fma(x, broadcast(0x1.71547652b82fep0), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double log2_tail = broadcast(0x1.abc9e3b39803fp-56);
  const Double first = fma(-n, broadcast(0x1.62e42fefa39efp-1), x);
  const Double r = fma(-n, log2_tail, first);
  const Double tail = fma(-n, log2_tail, first - r);
  Double p = fma(r, broadcast(0x1.1eed19de929c7p-29), broadcast(0x1.af6e5b86e3f2p-26));
  p = fma(r, p, broadcast(0x1.27e5339857544p-22));
  p = fma(r, p, broadcast(0x1.71ddee8652109p-19));
  p = fma(r, p, broadcast(0x1.a01a017d4ad35p-16));
  p = fma(r, p, broadcast(0x1.a01a01b43e179p-13));
  p = fma(r, p, broadcast(0x1.6c16c16c1e5b9p-10));
  p = fma(r, p, broadcast(0x1.111111110ea06p-7));
  p = fma(r, p, broadcast(0x1.5555555555544p-5));
  p = fma(r, p, broadcast(0x1.555555555555cp-3));
  p = fma(r, p, broadcast(0.5));
  return {1.0 + (r + fma(r * r, p, tail)), (Int64)rounded - (Int64)broadcast(round_double)};
}

// Error below 0.9 ulp.
inline Double exp(Double x) {
  if (__builtin_expect(all_within(abs(x), 708.0), 1)) {
    const auto [mantissa, power] = split_exp(x);
    return (Double)((Int64)mantissa + (power << 52));
  }
  x = x > 710.0 ? broadcast(710.0) : x;    // infinite from 709.79
  x = x < -746.0 ? broadcast(-746.0) : x;  // zero below -745.14
  const auto [mantissa, power] = split_exp(x);
  return scale(mantissa, power);
}

}  // namespace torchad_ext
#endif
