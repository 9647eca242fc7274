// Constants, signs, rounding, comparison and roots of a Vector.
#pragma once

#include <type_traits>

#include "../simd.h"

namespace torchad_ext {

template <class T>
constexpr bool is_single = std::is_same_v<T, Float>;

// A constant of the type that a functor computes in.
template <class T>
T number(double value);
template <>
inline Float number<Float>(double value) {
  return broadcast((float)value);
}
template <>
inline Double number<Double>(double value) {
  return broadcast(value);
}

// c0 + x (c1 + x (c2 + ...)), by Horner's rule.
template <class V, class T>
V horner(V, T last) {
  return broadcast(last);
}
template <class V, class T, class... More>
V horner(V x, T c0, More... more) {
  return fma(x, horner(x, more...), broadcast(c0));
}

inline Float abs(Float x) { return (Float)((Int32)x & INT32_MAX); }
inline Double abs(Double x) { return (Double)((Int64)x & INT64_MAX); }

// Flips the sign of y where the sign bit of `sign` is set.
inline Float flip(Float y, Int32 sign) { return (Float)((Int32)y ^ (sign & INT32_MIN)); }
inline Double flip(Double y, Int64 sign) { return (Double)((Int64)y ^ (sign & INT64_MIN)); }

// Adding it rounds to an integer, which is left in the low bits of the sum.
constexpr float round_float = 0x1.8p23f;
constexpr double round_double = 0x1.8p52;

// The integer n of the bits of round + n; of other bits any number.
inline Int32 rounded_integer(Int32 bits) { return (Int32)((UInt32)bits - (UInt32)broadcast(round_float)); }
inline Int64 rounded_integer(Int64 bits) { return (Int64)((UInt64)bits - (UInt64)broadcast(round_double)); }

// To the nearest integer, ties to even; beyond 2^23 (2^52) every number is one.
inline Float round(Float x) {
  const Float rounded = (abs(x) + 0x1p23f) - 0x1p23f;
  return abs(x) < 0x1p23f ? flip(rounded, (Int32)x) : x;
}
inline Double round(Double x) {
  const Double rounded = (abs(x) + 0x1p52) - 0x1p52;
  return abs(x) < 0x1p52 ? flip(rounded, (Int64)x) : x;
}

template <class T>
T floor(T x) {
  const T rounded = round(x);
  return rounded > x ? rounded - number<T>(1) : rounded;
}
template <class T>
T ceil(T x) {
  return -floor(-x);
}
inline Float trunc(Float x) { return flip(floor(abs(x)), (Int32)x); }
inline Double trunc(Double x) { return flip(floor(abs(x)), (Int64)x); }

// The exact rest of a division.
template <class T>
T fmod(T x, T y) {
  for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = __builtin_fmod(x[i], y[i]);
  return x;
}

}  // namespace torchad_ext
