// The exponential of a Vector, and the functions made of it.
#pragma once

#include "basic.h"

namespace torchad_ext {

// y with the sign of x, where y >= 0 or y has that sign already.
inline Float keep_sign(Float y, Float x) { return (Float)((Int32)y | ((Int32)x & INT32_MIN)); }
inline Double keep_sign(Double y, Double x) { return (Double)((Int64)y | ((Int64)x & INT64_MIN)); }

// 2^n, and y 2^n, where they are normal. Of n only the low bits matter.
inline Float power_of_two(Int32 n) { return (Float)(((UInt32)n + 127u) << 23); }
inline Double power_of_two(Int64 n) { return (Double)(((UInt64)n + 1023u) << 52); }
inline Float raise(Float y, Int32 n) { return (Float)((UInt32)y + ((UInt32)n << 23)); }
inline Double raise(Double y, Int64 n) { return (Double)((UInt64)y + ((UInt64)n << 52)); }

// x = n log 2 + r with an integer n, |r| <= log(2) / 2. The low bits of `bits` are those of n.
template <class T>
struct ReducedExp {
  T n, r;
  decltype(T{} < T{}) bits;
};
inline ReducedExp<Float> reduce_by_log2(Float x) {
  const Float rounded = fma(x, broadcast(0x1.715476p0f), broadcast(round_float));
  const Float n = rounded - round_float;
  return {n, fma(n, broadcast(0x1.05c61p-29f), fma(n, broadcast(-0x1.62e43p-1f), x)), (Int32)rounded};
}
inline ReducedExp<Double> reduce_by_log2(Double x) {
  const Double rounded = fma(x, broadcast(0x1.71547652b82fep0), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double head = fma(n, broadcast(-0x1.62e42fefa39efp-1), x);
  return {n, fma(n, broadcast(-0x1.abc9e3b39803fp-56), head), (Int64)rounded};
}

// The same with r = head + tail, for results as small as r.
template <class T>
struct LongReducedExp {
  T head, tail, r;
  decltype(T{} < T{}) bits;
};
inline LongReducedExp<Float> long_reduce_by_log2(Float x) {
  const Float rounded = fma(x, broadcast(0x1.715476p0f), broadcast(round_float));
  const Float n = rounded - round_float;
  const Float head = fma(n, broadcast(-0x1.62e43p-1f), x);
  const Float tail = n * 0x1.05c61p-29f;
  return {head, tail, head + tail, (Int32)rounded};
}
inline LongReducedExp<Double> long_reduce_by_log2(Double x) {
  const Double rounded = fma(x, broadcast(0x1.71547652b82fep0), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double head = fma(n, broadcast(-0x1.62e42fefa39efp-1), x);
  const Double tail = n * -0x1.abc9e3b39803fp-56;
  return {head, tail, head + tail, (Int64)rounded};
}

// (e^r - 1 - r) / r^2. It leaves e^r a relative error of 2^-28 and 2^-57.
inline Float exp_tail(Float r) {
  return horner(r, 0x1.fffffap-2f, 0x1.55549p-3f, 0x1.555a22p-5f, 0x1.123b08p-7f, 0x1.695428p-10f);
}
inline Double exp_tail(Double r) {
  return horner(r, 0x1.000000000000ap-1, 0x1.55555555554fep-3, 0x1.55555555506bap-5, 0x1.1111111126b32p-7,
                0x1.6c16c18477b36p-10, 0x1.a01a012ff1917p-13, 0x1.a019995cc2d07p-16, 0x1.71df18e4e1d8ap-19,
                0x1.28adff1e2d279p-22, 0x1.ad92fff0df8f4p-26);
}

// e^r
template <class T>
T exp_mantissa(T r) {
  const T one = number<T>(1);
  return fma(r, fma(r, exp_tail(r), one), one);
}

// exp(x) = 2^power mantissa.
struct FloatExp {
  Float mantissa;
  Int32 power;
};
inline FloatExp split_exp(Float x) {
  const auto e = reduce_by_log2(x);
  return {exp_mantissa(e.r), rounded_integer(e.bits)};
}
struct DoubleExp {
  Double mantissa;
  Int64 power;
};
inline DoubleExp split_exp(Double x) {
  const auto e = reduce_by_log2(x);
  return {exp_mantissa(e.r), rounded_integer(e.bits)};
}

// Where e^x and e^-x are normal, where e^x is 0 and where it is infinite.
struct ExpRange {
  double normal, zero, infinite;
};
template <class T>
constexpr ExpRange exp_range = {87, -104, 89};
template <>
inline constexpr ExpRange exp_range<Double> = {708, -746, 710};
template <class T>
constexpr ExpRange exp2_range = {126, -151, 129};
template <>
inline constexpr ExpRange exp2_range<Double> = {1022, -1076, 1025};

// From here on e^-x is nothing beside 1.
template <class T>
constexpr double exp_hidden = 20;
template <>
inline constexpr double exp_hidden<Double> = 40;

// 2^n mantissa(r) of the reduced x.
template <class T, class Reduce, class Mantissa>
T exponential(T x, const ExpRange& range, Reduce reduce, Mantissa mantissa) {
  if (!has_avx512 && __builtin_expect(all_within(abs(x), range.normal), 1)) {
    const auto e = reduce(x);
    return raise(mantissa(e.r), e.bits);
  }
  // A result that underflows takes a hundred times as long, and of -inf, which masks are made of, it need not.
  const auto vanishes = x < number<T>(range.zero);
  const auto e = reduce(at_most(range.infinite, vanishes ? number<T>(0) : x));
  const T y = scale(mantissa(e.r), e.n);
  return vanishes ? number<T>(0) : y;
}

// e^x.
// Error: 0.9 ulp.
// Range: all numbers, denormal results included.
// Source: x = n log(2) + r and a minimax polynomial of e^r.
template <class T>
T exp(T x) {
  return exponential(x, exp_range<T>, [](T v) { return reduce_by_log2(v); }, [](T r) { return exp_mantissa(r); });
}

// 2^r for |r| <= 1 / 2; relative error 2^-28 and 2^-57.
inline Float exp2_mantissa(Float r) {
  return horner(r, 1.0f, 0x1.62e43p-1f, 0x1.ebfbd8p-3f, 0x1.c6af76p-5f, 0x1.3b30ap-7f, 0x1.5f0b82p-10f,
                0x1.3fa206p-13f);
}
inline Double exp2_mantissa(Double r) {
  return horner(r, 1.0, 0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5a6p-3, 0x1.c6b08d704a12cp-5, 0x1.3b2ab6fb9fda6p-7,
                0x1.5d87fe789e96fp-10, 0x1.4309130f6cbdbp-13, 0x1.ffcbfc6685ee5p-17, 0x1.62bfc6596be6ap-20,
                0x1.b52522bc20bcdp-24, 0x1.e61d4332035bap-28, 0x1.e9731780488cp-32);
}

// x = n + r
inline ReducedExp<Float> reduce_by_one(Float x) {
  const Float rounded = x + round_float;
  const Float n = rounded - round_float;
  return {n, x - n, (Int32)rounded};
}
inline ReducedExp<Double> reduce_by_one(Double x) {
  const Double rounded = x + round_double;
  const Double n = rounded - round_double;
  return {n, x - n, (Int64)rounded};
}

// 2^x.
// Error: 0.9 ulp.
// Range: all numbers, denormal results included.
// Source: x = n + r and a minimax polynomial of 2^r.
template <class T>
T exp2(T x) {
  return exponential(x, exp2_range<T>, [](T v) { return reduce_by_one(v); }, [](T r) { return exp2_mantissa(r); });
}

// e^x - 1.
// Error: 1.4 ulp.
// Range: all numbers.
// Source: x = n log(2) + r, r = head + tail: (2^n - 1) + 2^n head + 2^n (r^2 exp_tail(r) + tail).
template <class T>
T expm1(T x) {
  const auto e = long_reduce_by_log2(at_least(-exp_hidden<T>, x));
  const T power = power_of_two(e.bits);
  const T rest = fma(e.r * e.r, exp_tail(e.r), e.tail);
  const T y = keep_sign(fma(power, rest, fma(power, e.head, power - number<T>(1))), x);
  if (__builtin_expect(all_within(x, exp_range<T>.normal), 1)) return y;
  return x < exp_range<T>.normal ? y : exp(x);
}

// r coth(r / 2) for |r| <= log(2) / 2; relative error 2^-29 and 2^-60.
inline Float coth_polynomial(Float r) {
  const Float z = r * r;
  return horner(z, 2.0f, 0x1.55551ep-3f, -0x1.6aa3e2p-9f);
}
inline Double coth_polynomial(Double r) {
  const Double z = r * r;
  return horner(z, 2.0, 0x1.555555555553ep-3, -0x1.6c16c16bebc76p-9, 0x1.1566aaf23a927p-14, -0x1.bbd41c219668p-20,
                0x1.637684cce3434p-25);
}

// y 2^n of a reduced x, which is normal where x is in the normal range.
template <class T>
T raise_or_scale(T y, const ReducedExp<T>& e, T x) {
  if (!has_avx512 && __builtin_expect(all_within(abs(x), exp_range<T>.normal), 1)) return raise(y, e.bits);
  return scale(y, e.n);
}

// sigmoid(-a) and tanh(a / 2) of a = |x|.
template <class T>
struct Logistic {
  T low, tanh;
};

// The functions below are made of this, which a kernel that calls several of them for one x computes once: there is no
// branch that would hide it from the compiler. -a = n log 2 + r and e^r = up / down with up, down = r coth(r / 2) +- r,
// hence sigmoid(-a) = 2^n up / sum and tanh(a / 2) = (down - 2^n up) / sum with sum = down + 2^n up. That numerator is
// -2 r for n = 0.
template <class T>
inline Logistic<T> logistic(T x) {
  const T one = number<T>(1);
  const T minus_a = at_least(exp_range<T>.zero, -abs(x));
  const auto e = reduce_by_log2(minus_a);
  const T power = raise_or_scale(one, e, minus_a);
  const T twice = e.r + e.r;
  const T up = coth_polynomial(e.r) + e.r;
  const T down = up - twice;
  const T down_tail = (up - down) - twice;
  const T sum = down + fma(power, up, down_tail);
  const T difference = e.n == number<T>(0) ? -twice : fma(-power, up, down);
  return {raise_or_scale(up / sum, e, minus_a), difference / sum};
}

// 1 / (1 + e^-x).
// Error: 2.1 ulp.
// Range: all numbers, denormal results included.
// Source: logistic.
template <class T>
T sigmoid(T x) {
  const T low = logistic(x).low;
  return x < number<T>(0) ? low : number<T>(1) - low;
}

// The slope of sigmoid, sigmoid(x) sigmoid(-x).
// Error: 3 ulp.
// Range: all numbers.
// Source: logistic.
template <class T>
T logistic_density(T x) {
  const T low = logistic(x).low;
  return fma(-low, low, low);
}

// tanh(x / 2).
// Error: 4 ulp.
// Range: all numbers.
// Source: logistic.
template <class T>
T tanh_half(T x) {
  return keep_sign(logistic(x).tanh, x);
}

// The denominator d of tanh r = r - r^3 / d for |r| <= 5 / 8, as a polynomial in z = r^2. It leaves tanh r a relative
// error of 2^-27 and 2^-58.
inline Float tanh_denominator(Float z) { return horner(z, 0x1.800016p1f, 0x1.33307ep0f, -0x1.6a5c9cp-8f); }
inline Double tanh_denominator(Double z) {
  return horner(z, 0x1.800000000000bp1, 0x1.3333333332d84p0, -0x1.767dce3b60aebp-8, 0x1.0a4e104dade2cp-12,
                -0x1.99790aa861a62p-17, 0x1.40becae6f34d1p-21, -0x1.d6cd93feff11cp-26);
}

// a = r - n log(2) / 2, but n = 0 where a is small.
inline ReducedExp<Float> reduce_by_half_log2(Float a, Int32 small) {
  const Float round = broadcast(round_float);
  const Float rounded = small ? round : fma(a, broadcast(-0x1.715476p1f), round);
  const Float n = rounded - round;
  return {n, fma(n, broadcast(0x1.62e43p-2f), a), (Int32)rounded};
}
inline ReducedExp<Double> reduce_by_half_log2(Double a, Int64 small) {
  const Double round = broadcast(round_double);
  const Double rounded = small ? round : fma(a, broadcast(-0x1.71547652b82fep1), round);
  const Double n = rounded - round;
  return {n, fma(n, broadcast(0x1.62e42fefa39efp-2), a), (Int64)rounded};
}

// tanh x.
// Error: 1.7 ulp.
// Range: all numbers.
// Source: a - a^3 / d for a = |x| below 5 / 8; beyond, 1 - 2 / (1 + e^(2 a)) with e^(2 r) = up / down and
//   up, down = d +- (r d - r^3).
template <class T>
T tanh(T x) {
  const T a = at_most(0.5 * exp_hidden<T>, abs(x));
  const auto small = a < number<T>(0.625);
  const auto e = reduce_by_half_log2(a, small);
  const T power = power_of_two(e.bits);
  const T z = e.r * e.r;
  const T cube = e.r * z;
  const T d = tanh_denominator(z);
  const T odd = fma(e.r, d, -cube);
  const T up = d + odd;
  const T down = d - odd;
  const T fraction = (power + power) * (small ? cube : down) / fma(power, down, up);
  return keep_sign((small ? a : number<T>(1)) - fraction, x);
}

// (sinh r - r) / r^3 and cosh r - 1 in z = r^2. They leave sinh r and cosh r relative errors of 2^-26 and 2^-33 in
// float, of 2^-61 and 2^-58 in double.
inline Float sinh_tail(Float z) { return horner(z, 0x1.5554bp-3f, 0x1.122794p-7f); }
inline Float coshm1(Float z) { return z * horner(z, 0.5f, 0x1.5554e4p-5f, 0x1.6d514ap-10f); }
inline Double sinh_tail(Double z) {
  return horner(z, 0x1.5555555555559p-3, 0x1.111111110f656p-7, 0x1.a01a01b00275ep-13, 0x1.71ddf8138accbp-19,
                0x1.af5f227a31a08p-26);
}
inline Double coshm1(Double z) {
  return z * horner(z, 0x1.000000000000bp-1, 0x1.5555555550267p-5, 0x1.6c16c1853d592p-10, 0x1.a0199791be1d1p-16,
                    0x1.28af7540119bdp-22);
}

// a cosh r + b sinh r, where a is a + a_tail.
template <class T>
T add_hyperbolic(T a, T a_tail, T b, const LongReducedExp<T>& e) {
  const T z = e.r * e.r;
  const T sinh_rest = fma(e.r * z, sinh_tail(z), e.tail);
  return a + fma(b, e.head, fma(a, coshm1(z), fma(b, sinh_rest, a_tail)));
}

// e^a / 2 beyond the normal range.
template <class T>
T half_exp(T a) {
  const auto e = reduce_by_log2(at_most(exp_range<T>.infinite + 1, a));
  return scale(exp_mantissa(e.r), e.n - number<T>(1));
}

// sinh x and cosh x.
// Error: 1.2 ulp.
// Range: all numbers.
// Source: x = n log(2) + r, the addition theorems, and minimax polynomials of sinh r and cosh r.
template <class T>
T sinh(T x) {
  const T a = abs(x);
  const auto e = long_reduce_by_log2(a);
  const T up = power_of_two(e.bits - 1);
  const T down = power_of_two(~e.bits);
  const T difference = up - down;
  const T y = add_hyperbolic(difference, (up - difference) - down, up + down, e);
  if (__builtin_expect(all_within(a, exp_range<T>.normal), 1)) return keep_sign(y, x);
  return keep_sign(a < exp_range<T>.normal ? y : half_exp(a), x);
}
template <class T>
T cosh(T x) {
  const T a = abs(x);
  const auto e = long_reduce_by_log2(a);
  const T up = power_of_two(e.bits - 1);
  const T down = power_of_two(~e.bits);
  const T sum = up + down;
  const T y = add_hyperbolic(sum, (up - sum) + down, up - down, e);
  if (__builtin_expect(all_within(a, exp_range<T>.normal), 1)) return y;
  return a < exp_range<T>.normal ? y : half_exp(a);
}

}  // namespace torchad_ext
