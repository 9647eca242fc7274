// Trigonometric functions of a Vector and their inverses.
#pragma once

#include "basic.h"
#include "huge_arguments.h"

namespace torchad_ext {

// sin, cos and tan reduce x = n pi/2 + r + tail, |r| <= pi/4, and the quadrant n mod 4 tells which of +-sin r, +-cos r
// to take. pi/2 is a sum of three words, so that r keeps its leading digits also next to a multiple of pi; the tail is
// what rounding takes from r. Beyond these bounds a float is computed in double and a double has a reduction of its
// own.
constexpr float reducible_float = 0x1p8f;
constexpr double reducible_double = 0x1p30;

template <class V>
struct Reduced {
  V r, tail;
  decltype(V{} < V{}) quadrant;
};

inline Reduced<Float> reduce_by_half_pi(Float x) {
  const Float rounded = fma(x, broadcast(0x1.45f306p-1f), broadcast(round_float));
  const Float n = rounded - round_float;
  const Float half_pi1 = broadcast(0x1.777ap-25f);           // n half_pi1 is exact
  const Float first = fma(n, broadcast(-0x1.921fb6p0f), x);  // exact
  const Float r = fma(n, half_pi1, first);
  const Float tail = fma(n, broadcast(0x1.73dcb4p-43f), fma(n, half_pi1, first - r));
  return {r, tail, (Int32)rounded};
}

// Without AVX-512 a comparison with 0, which a blend makes by itself.
inline Int32 is_odd(Int32 n) { return has_avx512 ? (n & 1) != 0 : n << 31 < 0; }
inline Int64 is_odd(Int64 n) { return has_avx512 ? (n & 1) != 0 : n << 63 < 0; }

// Relative error of the polynomials: 2^-27 and 2^-32.
inline Float sin_polynomial(Float r, Float tail) {
  const Float z = r * r;
  const Float p = horner(z, -0x1.555544p-3f, 0x1.1106c2p-7f, -0x1.9919dp-13f);
  return r + fma(r * z, p, tail);
}
inline Float cos_polynomial(Float r, Float tail) {
  const Float z = r * r;
  const Float p = horner(z, -0.5f, 0x1.55554ap-5f, -0x1.6c0c0ep-10f, 0x1.99db8ap-16f);
  const Float square = fma(r, r, (r + r) * tail);  // of r + tail, rounded once
  return fma(square, p, broadcast(1.0f));
}

// Beyond the bound, lane by lane.
__attribute__((noinline, cold)) inline Reduced<Double> reduce_each(Double x, Reduced<Double> reduced) {
  for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) {
    if (x[i] <= reducible_double) continue;
    const HugeReduced huge = __builtin_isfinite(x[i]) ? reduce_huge(x[i]) : HugeReduced{x[i] - x[i], 0, 0};
    reduced.r[i] = huge.r;
    reduced.tail[i] = huge.tail;
    reduced.quadrant[i] = huge.quadrant;
  }
  return reduced;
}

// Of x >= 0 or nan.
inline Reduced<Double> reduce_by_half_pi(Double x) {
  const Double rounded = fma(x, broadcast(0x1.45f306dc9c883p-1), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double half_pi1 = broadcast(0x1.1a62633145c07p-54);
  const Double first = fma(-n, broadcast(0x1.921fb54442d18p0), x);  // exact
  const Double second = n * half_pi1;
  const Double second_tail = fma(n, half_pi1, -second);  // exact
  const Double r = first - second;
  const Double tail = fma(-n, broadcast(-0x1.f1976b7ed8fbcp-110), ((first - r) - second) - second_tail);
  const Reduced<Double> reduced = {r, tail, (Int64)rounded};
  return __builtin_expect(all_within(x, reducible_double), 1) ? reduced : reduce_each(x, reduced);
}

// Relative error of the polynomials: 2^-57 and 2^-63.
inline Double sin_polynomial(Double r, Double tail) {
  const Double z = r * r;
  const Double p = horner(z, -0x1.5555555555548p-3, 0x1.111111110f76p-7, -0x1.a01a019bf2b7dp-13, 0x1.71de355fa4c72p-19,
                          -0x1.ae5e550039428p-26, 0x1.5d8e624f8bcbap-33);
  return r + fma(r * z, p, tail * horner(z, 1.0, -0.5));
}
inline Double cos_polynomial(Double r, Double tail) {
  const Double z = r * r;
  const Double p = horner(z, 0x1.555555555554cp-5, -0x1.6c16c16c15223p-10, 0x1.a01a019cbff9p-16, -0x1.27e4f81336569p-22,
                          0x1.1ee9f1b06dc6cp-29, -0x1.8fb16360d8b6p-37);
  const Double head = horner(z, 1.0, -0.5);
  const Double head_tail = fma(z, broadcast(-0.5), 1.0 - head);
  return head + (head_tail + fma(z * z, p, -r * tail));
}

// y, and f(x) in double in the lanes where x is beyond the bound: what a lane gives does not depend on the others.
template <class F>
inline Float or_in_double(Float x, Float y, F f) {
  if (__builtin_expect(all_within(abs(x), reducible_float), 1)) return y;
  const Float wide = in_double(x, f);
  return abs(x) <= reducible_float ? y : wide;
}

// sin x and cos x.
// Error: 1 ulp.
// Range: all numbers.
// Source: x = n pi/2 + r and minimax polynomials in r; floats beyond 2^8 in double, doubles beyond 2^30 by Payne and
//   Hanek's reduction.
inline Double sin(Double x) {
  const auto [r, tail, quadrant] = reduce_by_half_pi(abs(x));
  const Double y = is_odd(quadrant) ? cos_polynomial(r, tail) : sin_polynomial(r, tail);
  return flip(y, quadrant << 62 ^ (Int64)x);
}
inline Double cos(Double x) {
  const auto [r, tail, quadrant] = reduce_by_half_pi(abs(x));
  const Double y = is_odd(quadrant) ? sin_polynomial(r, tail) : cos_polynomial(r, tail);
  return flip(y, (Int64)((UInt64)quadrant + 1u) << 62);
}
inline Float sin(Float x) {
  const auto [r, tail, quadrant] = reduce_by_half_pi(abs(x));
  const Float y = is_odd(quadrant) ? cos_polynomial(r, tail) : sin_polynomial(r, tail);
  return or_in_double(x, flip(y, quadrant << 30 ^ (Int32)x), [](Double v) { return sin(v); });
}
inline Float cos(Float x) {
  const auto [r, tail, quadrant] = reduce_by_half_pi(abs(x));
  const Float y = is_odd(quadrant) ? sin_polynomial(r, tail) : cos_polynomial(r, tail);
  return or_in_double(x, flip(y, (Int32)((UInt32)quadrant + 1u) << 30), [](Double v) { return cos(v); });
}

// (tan r / r - 1) / r^2 of z = r^2. Relative error of tan: 2^-29 and 2^-56.
inline Float tan_polynomial(Float z) {
  return horner(z, 0x1.55556p-2f, 0x1.110dap-3f, 0x1.bad96cp-5f, 0x1.5cc2bp-6f, 0x1.62ccdep-7f, 0x1.93195cp-14f,
                0x1.1eb35cp-8f);
}
inline Double tan_polynomial(Double z) {
  return horner(z, 0x1.55555555554eep-2, 0x1.111111111862cp-3, 0x1.ba1ba1b447bacp-5, 0x1.664f49aed637cp-6,
                0x1.226e11a6ab911p-7, 0x1.d6d94d715df27p-9, 0x1.7d5a1c2260bb6p-10, 0x1.380565260fce9p-11,
                0x1.d1eca431bfa4dp-13, 0x1.1f424308839fcp-13, -0x1.c5c2198325c7fp-16, 0x1.79d4a95b674e1p-14,
                -0x1.7b6785146ecp-15, 0x1.5f7eb9a0a8ffp-16);
}

// tan(r + tail), or -1 / tan(r + tail) in an odd quadrant, where a Newton step mends the rounding of the division.
template <class V>
inline V tan_by_quadrant(Reduced<V> x) {
  const auto [r, tail, quadrant] = x;
  const V one = number<V>(1);
  const V z = r * r;
  const V change = r * z * tan_polynomial(z);
  const V approximate = r + change;
  const V rest = fma(tail, fma(approximate, approximate, one), change);
  const V y = r + rest;
  const V inverse = -one / y;
  const V remainder = fma(inverse, (r - y) + rest, fma(inverse, y, one));
  return is_odd(quadrant) ? fma(inverse, remainder, inverse) : y;
}

// tan x.
// Error: 1.3 ulp.
// Range: all numbers.
// Source: x = n pi/2 + r, a minimax polynomial in r, and -1 / tan r in an odd quadrant.
inline Double tan(Double x) { return flip(tan_by_quadrant(reduce_by_half_pi(abs(x))), (Int64)x); }
inline Float tan(Float x) {
  const Float y = tan_by_quadrant(reduce_by_half_pi(abs(x)));
  return or_in_double(x, flip(y, (Int32)x), [](Double v) { return tan(v); });
}

// (atan q / q - 1) / q^2 of z = q^2, |q| <= 1. Relative error of atan: 2^-28 and 2^-54.
inline Float atan_polynomial(Float z) {
  return horner(z, -0x1.55553ap-2f, 0x1.9991p-3f, -0x1.24177ap-3f, 0x1.c0317ep-4f, -0x1.5709bap-4f, 0x1.d6de14p-5f,
                -0x1.f722e6p-6f, 0x1.5d871ap-7f, -0x1.c7dc84p-10f);
}
inline Double atan_polynomial(Double z) {
  return horner(z, -0x1.555555555541ap-2, 0x1.9999999980c54p-3, -0x1.2492491f00d45p-3, 0x1.c71c707e39cbdp-4,
                -0x1.745d00489bd71p-4, 0x1.3b129f8d3ac9fp-4, -0x1.1108135f59fabp-4, 0x1.e17286e0dc9d3p-5,
                -0x1.ad1d3c54bf2d9p-5, 0x1.7ea4ed9c4deffp-5, -0x1.4eb75e17df564p-5, 0x1.16206c65d806dp-5,
                -0x1.a499fbade7921p-6, 0x1.1397e6863be52p-6, -0x1.291161f6fd573p-7, 0x1.f0e78059cda5ep-9,
                -0x1.2aced437a67e3p-10, 0x1.c824eb3657937p-13, -0x1.4a2bb05843febp-16);
}

// pi/2 in two words.
template <class V>
inline V half_pi() {
  return number<V>(0x1.921fb54442d18p0);
}
template <class V>
inline V half_pi_tail();
template <>
inline Float half_pi_tail<Float>() {
  return broadcast(-0x1.777a5cp-25f);
}
template <>
inline Double half_pi_tail<Double>() {
  return broadcast(0x1.1a62633145c07p-54);
}

// n pi/2 + atan(q) for |q| <= 1.
template <class V>
inline V turned_atan(V n, V q) {
  const V z = q * q;
  return fma(n, half_pi<V>(), q + fma(q * z, atan_polynomial(z), n * half_pi_tail<V>()));
}

// atan(x) = pi/2 - atan(1 / x) beyond 1.
template <class V>
inline V arc_tangent(V x) {
  using Integer = decltype(x < x);
  const V one = number<V>(1);
  const Integer steep = abs(x) > one;
  const V q = (steep ? -one : abs(x)) / (steep ? abs(x) : one);
  return flip(turned_atan(steep ? one : V{}, q), (Integer)x);
}

// The same of y / x or of x / y, whichever is smaller. The quotient of two zeros counts as 0, of two infinities as 1.
template <class V>
inline V arc_tangent(V y, V x) {
  using Integer = decltype(x < x);
  const V zero = V{};
  const V one = number<V>(1);
  const Integer left = (Integer)x < Integer{};
  const Integer steep = abs(y) > abs(x);
  const V smaller = steep ? abs(x) : abs(y);
  const V larger = steep ? abs(y) : abs(x);
  const V equal = larger == zero ? zero : one;
  const V q = smaller == larger ? equal : smaller / larger;
  const V n = steep ? one : left ? one + one : zero;
  return flip(turned_atan(n, flip(q, steep ^ left)), (Integer)y);
}

// The angle whose tangent is x.
// Error: 1.4 ulp.
// Range: all numbers.
// Source: a minimax polynomial on [-1, 1]; pi/2 - atan(1 / x) beyond.
inline Float atan(Float x) { return arc_tangent(x); }
inline Double atan(Double x) { return arc_tangent(x); }

// The angle of the point (x, y).
// Error: 1.8 ulp, most of it from the division.
// Range: all numbers, signed zeros and infinities as in C.
// Source: atan of the smaller quotient, turned by n pi/2.
inline Float atan2(Float y, Float x) { return arc_tangent(y, x); }
inline Double atan2(Double y, Double x) { return arc_tangent(y, x); }

// (asin s / s - 1) / s^2 of z = s^2, |s| <= 1/2. Relative error of asin: 2^-27 and 2^-55.
inline Float asin_polynomial(Float z) {
  return horner(z, 0x1.5555c8p-3f, 0x1.330246p-4f, 0x1.747212p-5f, 0x1.8caecep-6f, 0x1.58f46p-5f);
}
inline Double asin_polynomial(Double z) {
  return horner(z, 0x1.5555555555399p-3, 0x1.333333336d0c6p-4, 0x1.6db6db438bf1dp-5, 0x1.f1c72bdb3836fp-6,
                0x1.6e89fd4d337c6p-6, 0x1.1c6b575742861p-6, 0x1.c70876a6feda2p-7, 0x1.8e7ce740fc94ep-7,
                0x1.ae2946e15bc09p-8, 0x1.3e5cdb40af60fp-6, -0x1.075a90079030dp-6, 0x1.04975b2137fa3p-5);
}

// pi/2 - 2 asin(s) beyond 1/2, with s^2 = (1 - x) / 2.
template <class V>
inline V arc_sine(V x) {
  using Integer = decltype(x < x);
  const V half = number<V>(0.5);
  const Integer steep = abs(x) > half;
  const V z = steep ? fma(abs(x), -half, half) : x * x;
  const V s = steep ? number<V>(-2) * sqrt(z) : abs(x);
  const V head = steep ? half_pi<V>() : V{};
  const V tail = steep ? half_pi_tail<V>() : V{};
  const V sum = head + s;
  const V lost = (head - sum) + s;
  return flip(sum + (lost + fma(s * z, asin_polynomial(z), tail)), (Integer)x);
}

// pi/2 - asin(x), which is 2 asin(s) beyond 1/2 and pi - 2 asin(s) below -1/2.
template <class V>
inline V arc_cosine(V x) {
  using Integer = decltype(x < x);
  const V half = number<V>(0.5);
  const Integer steep = abs(x) > half;
  const V z = steep ? fma(abs(x), -half, half) : x * x;
  const V s = steep ? flip(number<V>(2) * sqrt(z), (Integer)x) : -x;
  const V n = steep ? (x < V{} ? number<V>(2) : V{}) : number<V>(1);
  return fma(n, half_pi<V>(), s + fma(s * z, asin_polynomial(z), n * half_pi_tail<V>()));
}

// The angle whose sine is x.
// Error: 1.3 ulp.
// Range: [-1, 1]; nan beyond.
// Source: a minimax polynomial on [-1/2, 1/2]; pi/2 - 2 asin(s) beyond.
inline Float asin(Float x) { return arc_sine(x); }
inline Double asin(Double x) { return arc_sine(x); }

// The angle whose cosine is x.
// Error: 1.2 ulp.
// Range: [-1, 1]; nan beyond.
// Source: pi/2 - asin(x), by the polynomial of asin.
inline Float acos(Float x) { return arc_cosine(x); }
inline Double acos(Double x) { return arc_cosine(x); }

// Beyond the bound or its reciprocal a power of two keeps the squares from overflow and underflow.
template <class V, class T>
inline V hypotenuse(V x, V y, T bound, T power) {
  const V infinity = number<V>(INFINITY);
  const V longer = abs(x) > abs(y) ? abs(x) : abs(y);
  const V shorter = abs(x) > abs(y) ? abs(y) : abs(x);
  const V square = fma(longer, longer, shorter * shorter);
  if (__builtin_expect(all_within(square, bound * bound) && all_within(-square, -1 / (bound * bound)), 1)) {
    return sqrt(square);
  }
  const V one = number<V>(1);
  const V up = longer < 1 / bound ? broadcast(power) : one;
  const V down = longer > bound ? broadcast(power) : one;
  const V a = longer * (up / down), b = shorter * (up / down);
  const V scaled = sqrt(fma(a, a, b * b)) * (down / up);
  const auto infinite = (abs(x) == infinity) | (abs(y) == infinity);
  return infinite ? infinity : scaled;
}

// sqrt(x^2 + y^2).
// Error: 1 ulp.
// Range: all numbers; infinite if either is.
// Source: the root of the sum of squares, scaled by a power of two where they overflow or underflow.
inline Float hypot(Float x, Float y) { return hypotenuse(x, y, 0x1p50f, 0x1p100f); }
inline Double hypot(Double x, Double y) { return hypotenuse(x, y, 0x1p400, 0x1p700); }

}  // namespace torchad_ext
