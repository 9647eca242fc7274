// Logarithms and powers of a Vector.
#pragma once

#include "exponential.h"

namespace torchad_ext {

// The number head + tail; the tail is a rounding error of the head.
template <class T>
struct Long {
  T head, tail;
};

// The constant value + tail, rounded to two words of T.
template <class T>
Long<T> long_number(double value, double tail);
template <>
inline Long<Float> long_number<Float>(double value, double) {
  return {number<Float>(value), number<Float>(value - (float)value)};
}
template <>
inline Long<Double> long_number<Double>(double value, double tail) {
  return {number<Double>(value), number<Double>(tail)};
}

// Is every lane in [2^-126, 2^126] ([2^-1022, 2^1022])? Halved, the distance of the bits from those of the lower bound
// is the pattern of a number up to 0.5 for these lanes only.
inline bool all_ordinary(Float x) { return all_within((Float)(((UInt32)x - 0x00800000u) >> 1), 0.5f); }
inline bool all_ordinary(Double x) { return all_within((Double)(((UInt64)x - (1ull << 52)) >> 1), 0.5); }

// x = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), for an ordinary x. `shrink` is 2^-n.
template <class T>
struct SplitLog {
  T f, minus_n, shrink;
};

inline SplitLog<Float> split_log(Float x) {
  const UInt32 shift = (0x3fb504f2u - (UInt32)x) & 0xff800000u;  // -n, in the place of the exponent
  const auto m = (Float)((UInt32)x + shift);
  return {m - 1.0f, __builtin_convertvector((Int32)shift >> 23, Float), (Float)(shift + 0x3f800000u)};
}

// The exponent becomes a double as the low bits of 2^52 + 1024 - n.
inline SplitLog<Double> split_log(Double x) {
  const UInt64 biased = (0x7ff6a09e667f3bccu - (UInt64)x) >> 52;
  const UInt64 shift = (biased - 1024) << 52;
  const auto m = (Double)((UInt64)x + shift);
  return {m - 1.0, (Double)(biased | 0x4330000000000000u) - (0x1p52 + 1024), (Double)(shift + 0x3ff0000000000000u)};
}

// The same for every positive finite x, without `shrink`.
template <class T>
SplitLog<T> split_any(T x) {
  const T one = number<T>(1);
  SplitLog<T> split = split_log(x < one ? x * number<T>(0x1p60) : x);
  split.minus_n += x < one ? number<T>(60) : number<T>(0);
  return split;
}

// (log(1 + f) - f) / f^2. Relative error in log(1 + f): 2^-27 and 2^-56.
inline Float log1p_tail(Float f) {
  return horner(f, -0x1.fffff8p-2f, 0x1.55555p-2f, -0x1.000432p-2f, 0x1.99a41ap-3f, -0x1.5425c4p-3f, 0x1.226dfcp-3f,
                -0x1.0f3fa6p-3f, 0x1.0860dp-3f, -0x1.384734p-4f);
}
inline Double log1p_tail(Double f) {
  const Double z = f * f;
  const Double even = horner(z, -0x1.0000000000003p-1, -0x1.fffffffffdedep-3, -0x1.55555556e2856p-3,
                             -0x1.fffffef6a1e85p-4, -0x1.9999c9099069p-4, -0x1.55507465c2a19p-4, -0x1.24dc4ad63e562p-4,
                             -0x1.fb6e5d1a1f036p-5, -0x1.d15a51055eceep-5, -0x1.eb43a93fb9eebp-5);
  const Double odd = horner(z, 0x1.555555555551cp-2, 0x1.99999999a17dfp-3, 0x1.2492492246c29p-3, 0x1.c71c71d805a4ep-4,
                            0x1.745d4523d2ec3p-4, 0x1.3b0ac90940145p-4, 0x1.11d8243e2af19p-4, 0x1.cfb7294037c75p-5,
                            0x1.0b5466cc8a2e7p-4, 0x1.abe14d1892694p-6);
  return fma(f, odd, even);
}

// log(2^n (1 + f + tail)) for a tail of rounding errors. A float has 28 bits of log(2), so that only Double adds the
// rest of it. The log of 1 - 0 is -0.
inline Float log_of(Float f, Float tail, Float minus_n) {
  return fma(minus_n, broadcast(-0x1.62e43p-1f), f + fma(f * f, log1p_tail(f), tail));
}
inline Double log_of(Double f, Double tail, Double minus_n) {
  const Double rest = fma(minus_n, broadcast(-0x1.abc9e3b39803fp-56), tail);
  return fma(minus_n, broadcast(-0x1.62e42fefa39efp-1), f + fma(f * f, log1p_tail(f), rest));
}

// The logarithm of any x, by a function of its parts.
template <class T, class F>
T logarithm(T x, F of) {
  if (__builtin_expect(all_ordinary(x), 1)) return of(split_log(x));
  const T zero = number<T>(0);
  const T infinity = number<T>(INFINITY);
  const T y = of(split_any(x));
  return x > zero ? (x == infinity ? x : y) : x == zero ? -infinity : number<T>(NAN);
}

// log x.
// Error: 1 ulp.
// Range: all numbers; nan below 0.
// Source: x = 2^n (1 + f) and a minimax polynomial of log(1 + f).
template <class T>
T log(T x) {
  return logarithm(x, [](const SplitLog<T>& s) { return log_of(s.f, number<T>(-0.0), s.minus_n); });
}

// log(1 + f) times a factor.
template <class T>
T scaled_log1p(T f, const Long<T>& factor) {
  return fma(f, factor.head, fma(f, factor.tail, f * f * log1p_tail(f) * factor.head));
}

// The logarithm to base 2.
// Error: 1.3 ulp.
// Range: all numbers; nan below 0.
// Source: n + log(1 + f) / log(2).
template <class T>
T log2(T x) {
  return logarithm(x, [](const SplitLog<T>& s) {
    return scaled_log1p(s.f, long_number<T>(0x1.71547652b82fep0, 0x1.777d0ffda0d24p-56)) - s.minus_n;
  });
}

// The logarithm to base 10.
// Error: 1.1 ulp.
// Range: all numbers; nan below 0.
// Source: (n log(2) + log(1 + f)) / log(10).
template <class T>
T log10(T x) {
  return logarithm(x, [](const SplitLog<T>& s) {
    const T r = scaled_log1p(s.f, long_number<T>(0x1.bcb7b1526e50ep-2, 0x1.95355baaafad3p-57));
    const auto log10_2 = long_number<T>(0x1.34413509f79ffp-2, -0x1.9dc1da994fd21p-59);
    return fma(-s.minus_n, log10_2.head, fma(-s.minus_n, log10_2.tail, r));
  });
}

// log(1 + x + tail) for an ordinary 1 + x, with f = x 2^-n - (1 - 2^-n) and its rounding error.
template <class T>
T log1p_of(T x, T tail) {
  const T one = number<T>(1);
  const SplitLog<T> u = split_log(one + x);
  const T rest = one - u.shrink;
  const T f = fma(x, u.shrink, -rest);
  const T f_tail = fma(x, u.shrink, -(rest + f));
  return log_of(f, fma(tail, u.shrink, f_tail), u.minus_n);
}

// log(1 + x).
// Error: 1.1 ulp.
// Range: all numbers; nan below -1.
// Source: log of the rounded sum, with what rounding takes from it.
template <class T>
T log1p(T x) {
  const T one = number<T>(1);
  const T none = number<T>(-0.0);
  if (__builtin_expect(all_ordinary(one + x), 1)) return log1p_of(x, none);
  const T large = number<T>(0x1p60);
  return x > -one ? (x > large ? log(x) : log1p_of(x, none)) : log(one + x);
}

// The same quotient for t in [0, 1]; Double expands about 1/2, where two short chains lose no digits.
inline Float log1p_tail01(Float t) {
  return horner(t, -0x1.ffffd2p-2f, 0x1.554ddap-2f, -0x1.ff2556p-3f, 0x1.935568p-3f, -0x1.3a6736p-3f, 0x1.b53c48p-4f,
                -0x1.d7efa8p-5f, 0x1.4a9226p-6f, -0x1.b22adep-9f);
}
inline Double log1p_tail01(Double t) {
  const Double u = t - 0.5;
  const Double z = u * u;
  const Double even =
      horner(z, -0x1.833704d019edp-2, -0x1.7ddf1fe86ac65p-4, -0x1.da34824878eb5p-6, -0x1.44ba45de29cf8p-7,
             -0x1.d5faf078bd83ap-9, -0x1.60761684a5bap-10, -0x1.0ecee8c1e2f92p-11, -0x1.adc761b337c1dp-13,
             -0x1.29a469938b08p-14, -0x1.addb31bdc5db7p-15);
  const Double odd = horner(z, 0x1.6f0d7bd624bedp-3, 0x1.a279c04c785f3p-5, 0x1.131116fc1bbcdp-6, 0x1.84904ed20e4eap-8,
                            0x1.1ebd42cff7b82p-9, 0x1.b3dd7bc0a345dp-11, 0x1.53268b150a3e2p-12, 0x1.07516efaf57d3p-13,
                            0x1.b85f7dee2ca49p-15, 0x1.ace131592d8b9p-16);
  return fma(u, odd, even);
}

// log(1 + e^x).
// Error: 1.9 ulp.
// Range: all numbers.
// Source: max(x, 0) + log(1 + t) with t = e^-|x|, and a minimax polynomial of the logarithm.
template <class T>
T log1pexp(T x) {
  const T zero = number<T>(0);
  const T t = exp(-abs(x));
  return fma(t * t, log1p_tail01(t), x > zero ? x : t) + (x > zero ? t : zero);
}

// Flips the sign of y where the sign bit of x is set.
inline Float flip(Float y, Float x) { return flip(y, (Int32)x); }
inline Double flip(Double y, Double x) { return flip(y, (Int64)x); }

// log(2 x) for large x.
template <class T>
T log_of_twice(T x) {
  return log(x) + number<T>(0x1.62e42fefa39efp-1);
}

// The number whose sinh is x.
// Error: 1.4 ulp.
// Range: all numbers.
// Source: log1p(|x| + x^2 / (1 + sqrt(1 + x^2))) with the sign of x; log(2 |x|) beyond 2^30.
template <class T>
T asinh(T x) {
  const T one = number<T>(1);
  const T magnitude = abs(x);
  const T square = x * x;
  const T rest = square / (one + sqrt(one + square));
  const T sum = magnitude + rest;
  const T y = log1p_of(sum, (magnitude - sum) + rest);
  if (__builtin_expect(all_within(magnitude, 0x1p30), 1)) return flip(y, x);
  return flip(magnitude > number<T>(0x1p30) ? log_of_twice(magnitude) : y, x);
}

// The number >= 0 whose cosh is x.
// Error: 1.7 ulp.
// Range: from 1 on; nan below.
// Source: log1p(t + sqrt(t^2 + 2 t)) with t = x - 1; log(2 x) beyond 2^30.
template <class T>
T acosh(T x) {
  const T t = x - number<T>(1);
  const T root = sqrt(fma(t, t, t + t));
  const T sum = root + t;
  const T y = log1p_of(sum, (root - sum) + t);
  if (__builtin_expect(all_within(-x, -1) && all_within(x, 0x1p30), 1)) return y;
  return x < number<T>(1) ? number<T>(NAN) : x > number<T>(0x1p30) ? log_of_twice(x) : y;
}

// The number whose tanh is x.
// Error: 1.4 ulp.
// Range: [-1, 1]; nan beyond.
// Source: log1p(2 |x| / (1 - |x|)) / 2 with the sign of x.
template <class T>
T atanh(T x) {
  const T one = number<T>(1);
  const T magnitude = abs(x);
  const T twice = magnitude + magnitude;
  const T d = one - magnitude;
  const T d_tail = (one - d) - magnitude;
  const T inverse = one / d;
  const T q = twice * inverse;
  const T q_tail = inverse * fma(-q, d_tail, fma(-q, d, twice));
  const T y = number<T>(0.5) * log1p_of(q, q_tail);
  if (__builtin_expect(all_within(magnitude, 1 - 0x1p-24), 1)) return flip(y, x);
  const T beyond = magnitude > one ? number<T>(NAN) : number<T>(INFINITY);
  return flip(magnitude >= one ? beyond : y, x);
}

// (log2(1 + f) - (s + s^3 / 12) / log(2)) / s^5 in z = s^2, for s below. Relative error in log2: 2^-36 and 2^-66.
inline Float log2_tail(Float z) { return horner(z, 0x1.27770ep-6f, 0x1.a5bbfap-9f, 0x1.59ee12p-11f); }
inline Double log2_tail(Double z) {
  return horner(z, 0x1.2776c50ef9d24p-6, 0x1.a61762a75984bp-9, 0x1.484b142199119p-11, 0x1.0c9a63d67b0e2p-13,
                0x1.c69f8c4e63b3ep-16, 0x1.87b0b9ae22039p-18, 0x1.85e984b4f3f52p-20);
}

// log2(2^n (1 + f)) to 35 (63) bits, by log(1 + f) = 2 atanh(s / 2) = s + s^3 / 12 + ..., s = f / (1 + f / 2). The
// first two terms have two words each.
template <class T>
Long<T> long_log2(const SplitLog<T>& x) {
  const T one = number<T>(1);
  const T half = number<T>(0.5);
  const T d = fma(x.f, half, one);
  const T d_tail = fma(x.f, half, one - d);
  const T inverse = one / d;
  const T s = x.f * inverse;
  const T s_tail = inverse * fma(-s, d_tail, fma(-s, d, x.f));

  const auto c1 = long_number<T>(0x1.71547652b82fep0, 0x1.777d0ffda0d24p-56);
  const T line = s * c1.head;
  const T line_tail = fma(s, c1.head, -line) + fma(s, c1.tail, s_tail * c1.head);

  const auto c3 = long_number<T>(0x1.ec709dc3a03fdp-4, 0x1.d27f05548af0cp-58);
  const T z = s * s;
  const T z_tail = fma(s, s, -z) + (s + s) * s_tail;
  const T zz = fma(z, z, (z + z) * z_tail);
  const T q = z * c3.head;
  const T q_tail = fma(z, c3.head, -q) + fma(z, c3.tail, z_tail * c3.head);
  const T cube = s * q;
  const T cube_tail = fma(s, q, -cube) + fma(s, fma(zz, log2_tail(z), q_tail), s_tail * q);

  const T sum = line - x.minus_n;
  const T rest = (line - (sum + x.minus_n)) + (cube_tail + line_tail);
  const T head = sum + (cube + rest);
  return {head, ((sum - head) + cube) + rest};
}

// x^y = 2^(y log2(x)) for x > 0, given log2(x).
template <class T>
T power_of(const Long<T>& log2, T y) {
  constexpr double normal = is_single<T> ? 125 : 1021;  // 2^p is a normal number
  constexpr double bound = is_single<T> ? 200 : 1100;   // and here it is 0 or infinity
  const T rounder = number<T>(is_single<T> ? round_float : round_double);
  const T p = y * log2.head;
  const T p_tail = fma(y, log2.head, -p) + y * log2.tail;
  if (__builtin_expect(all_within(abs(p), normal), 1)) {
    const T rounded = p + rounder;
    return raise(exp2_mantissa((p - (rounded - rounder)) + p_tail), (decltype(p < p))rounded);
  }
  const T limit = number<T>(bound);
  const T bounded = p > limit ? limit : p < -limit ? -limit : p;
  const T n = (bounded + rounder) - rounder;
  const T r = (bounded - n) + (abs(p) < limit ? p_tail : number<T>(0));
  return scale(exp2_mantissa(r), n);
}

// x^y from |x|^y: an odd y keeps the sign of x, and a negative finite x has no power but to integers.
template <class T>
T signed_power(T magnitude, T x, T y) {
  const T half = number<T>(0.5) * y;
  const auto integer = round(y) == y;
  const auto odd = integer & (round(half) != half);
  const T infinity = number<T>(INFINITY);
  const T result = odd ? flip(magnitude, x) : magnitude;
  return ((x < number<T>(0)) & (x > -infinity) & ~integer) ? number<T>(NAN) : result;
}

// x^y.
// Error: 1 ulp.
// Range: all numbers, every special case as std::pow.
// Source: 2^(y log2(x)) with log2(x) in two words.
template <class T>
T pow(T x, T y) {
  const T zero = number<T>(0);
  const T one = number<T>(1);
  if (__builtin_expect(all_ordinary(x), 1)) return x == one ? one : power_of(long_log2(split_log(x)), y);
  const T infinity = number<T>(INFINITY);
  const T magnitude = abs(x);
  Long<T> log2 = long_log2(split_any(magnitude));
  const auto usual = (magnitude > zero) & (magnitude < infinity);
  log2.head = usual ? log2.head : magnitude == zero ? -infinity : magnitude;
  log2.tail = usual ? log2.tail : zero;
  const T limit = number<T>(0x1p100);  // as good as infinity
  const T bounded = y > limit ? limit : y < -limit ? -limit : y;
  const T power = signed_power(power_of(log2, bounded), x, y);
  return ((x == one) | (y == zero)) ? one : power;
}

}  // namespace torchad_ext
