// The exponential of a Vector, and the functions made of it.
#pragma once

#include "basic.h"

namespace torchad_ext {

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
