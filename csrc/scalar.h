// The scalar mathematics of the functors, under the same names on host and device.
//
// On the device T is float or double and CUDA's accurate functions serve, but for sin and cos of a float. On the host T
// is a Vector and the functions are polynomials without branches. The error of each is the largest on the host, in
// units in the last place (ulp) of the exact result, as tests/csrc/test_scalar.py holds it; coefficients are minimax
// fits by Sollya's fpminimax. Nothing is computed with fast-math on either side.
#pragma once

#if defined(__CUDACC__)
#define TORCHAD_EXT_FUNCTION __host__ __device__ __forceinline__
#define TORCHAD_EXT_PART __host__ __device__
#define TORCHAD_EXT_UNROLL _Pragma("unroll")

#include "cuda/trigonometric.cuh"

namespace torchad_ext {

using ::abs;
using ::acos;
using ::acosh;
using ::asin;
using ::asinh;
using ::atan;
using ::atan2;
using ::atanh;
using ::ceil;
using ::copysign;
using ::cosh;
using ::erf;
using ::erfc;
using ::erfcx;
using ::erfinv;
using ::exp;
using ::exp2;
using ::expm1;
using ::floor;
using ::fma;
using ::fmod;
using ::hypot;
using ::lgamma;
using ::log;
using ::log10;
using ::log1p;
using ::log2;
using ::pow;
using ::sinh;
using ::sqrt;
using ::tan;
using ::tanh;
using ::trunc;

template <class T>
constexpr bool is_single = sizeof(T) == sizeof(float);

// A constant of the type that a functor computes in.
template <class T>
TORCHAD_EXT_FUNCTION T number(double value) {
  return T(value);
}

// To the nearest integer, ties to even.
template <class T>
TORCHAD_EXT_FUNCTION T round(T x) {
  return ::rint(x);
}

// 1 / (1 + e^-x), by e^-|x|, which does not overflow.
template <class T>
TORCHAD_EXT_FUNCTION T sigmoid(T x) {
  const T e = exp(-abs(x));
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

// The slope of sigmoid, sigmoid(x) sigmoid(-x).
template <class T>
TORCHAD_EXT_FUNCTION T logistic_density(T x) {
  const T e = exp(-abs(x));
  return e / ((T(1) + e) * (T(1) + e));
}

template <class T>
TORCHAD_EXT_FUNCTION T tanh_half(T x) {
  return tanh(T(0.5) * x);
}

// exp(-weight x^2) for a weight of 1 or 1/2, with the rounding error of the square.
template <class T>
TORCHAD_EXT_FUNCTION T gaussian(T x, T weight) {
  const T weighted = weight * x;
  const T square = weighted * x;
  const T y = exp(-square);
  return y == T(0) ? y : y - y * fma(weighted, x, -square);
}

template <class T>
TORCHAD_EXT_FUNCTION T exp_minus_square(T x) {
  return gaussian(x, T(1));
}

// The density of the normal distribution and its distribution function.
template <class T>
TORCHAD_EXT_FUNCTION T normal_density(T x) {
  return T(0.39894228040143268) * gaussian(x, T(0.5));
}
TORCHAD_EXT_FUNCTION float ndtr(float x) { return normcdff(x); }
TORCHAD_EXT_FUNCTION double ndtr(double x) { return normcdf(x); }

// log(1 + e^x), by e^-|x|, which does not overflow.
template <class T>
TORCHAD_EXT_FUNCTION T log1pexp(T x) {
  return (x > T(0) ? x : T(0)) + log1p(exp(-abs(x)));
}

}  // namespace torchad_ext

#else
#define TORCHAD_EXT_FUNCTION inline
#define TORCHAD_EXT_PART __attribute__((noinline))  // compiled by itself
#define TORCHAD_EXT_UNROLL _Pragma("GCC unroll 32")

#include "math/basic.h"
#include "math/error_function.h"
#include "math/exponential.h"
#include "math/logarithm.h"
#include "math/trigonometric.h"

#endif

namespace torchad_ext {

// 1 / sqrt(x).
// Error: 1.5 ulp.
// Range: all numbers; nan below 0.
// Source: the rounded root and a division.
template <class T>
TORCHAD_EXT_FUNCTION T rsqrt(T x) {
  return number<T>(1) / sqrt(x);
}

// 1 / x.
// Error: 0.5 ulp.
// Range: all numbers.
// Source: a division.
template <class T>
TORCHAD_EXT_FUNCTION T reciprocal(T x) {
  return number<T>(1) / x;
}

// -1, 0 or 1; 0 for a nan, as in PyTorch.
template <class T>
TORCHAD_EXT_FUNCTION T sign(T x) {
  return x > number<T>(0) ? number<T>(1) : x < number<T>(0) ? number<T>(-1) : number<T>(0);
}

// The larger and the smaller of two numbers; a nan if either is one.
template <class T>
TORCHAD_EXT_FUNCTION T maximum(T a, T b) {
  return a != a ? a : a > b ? a : b;
}
template <class T>
TORCHAD_EXT_FUNCTION T minimum(T a, T b) {
  return a != a ? a : a < b ? a : b;
}

template <class Mask, class T>
TORCHAD_EXT_FUNCTION T where(Mask chosen, T a, T b) {
  return chosen ? a : b;
}

// fmod(x, y) is what Python calls math.fmod, remainder what it calls %: of the sign of x, of the sign of y.
template <class T>
TORCHAD_EXT_FUNCTION T remainder(T x, T y) {
  const T rest = fmod(x, y);
  const auto opposite = (rest < number<T>(0)) ^ (y < number<T>(0));
  return ((rest != number<T>(0)) & opposite) ? rest + y : rest;
}

// From a to b, exact at both ends.
template <class T>
TORCHAD_EXT_FUNCTION T lerp(T a, T b, T weight) {
  return abs(weight) < number<T>(0.5) ? a + weight * (b - a) : b - (b - a) * (number<T>(1) - weight);
}

// 1 - x^2, rounded once.
template <class T>
TORCHAD_EXT_FUNCTION T one_minus_square(T x) {
  return fma(-x, x, number<T>(1));
}

template <class T>
TORCHAD_EXT_FUNCTION T softsign(T x) {
  return x / (abs(x) + number<T>(1));
}

// x - tanh(x).
// Error: 8 ulp.
// Range: all numbers.
// Source: below 1 Lambert's continued fraction tanh(x) = x / (1 + k), k = x^2 / (3 + x^2 / (5 + ...)).
template <class T>
TORCHAD_EXT_FUNCTION T tanhshrink(T x) {
  const T z = x * x;
  T k = number<T>(0);
  TORCHAD_EXT_UNROLL
  for (int n = is_single<T> ? 9 : 17; n >= 3; n -= 2) k = z / (number<T>(n) + k);
  return abs(x) < number<T>(1) ? x * (k / (number<T>(1) + k)) : x - tanh(x);
}

// f_n(u) = j_n(u) / u^n at u = pi x with the spherical Bessel function j_n, whose derivative is -u f_{n+1}(u): sinc(x)
// for n = 0.
// Error: 4 ulp for n <= 4, next to a zero of j_n of the largest value nearby.
// Range: all finite numbers.
// Source: near 0 the power series, the sum of (-u^2 / 2)^k / (k! (2n + 2k + 1)!!); else upwards from sin(u) / u and
//   cos(u) by f_{n+1} = ((2n + 1) f_n - f_{n-1}) / u^2 (Abramowitz and Stegun, 10.1.2 and 10.1.19), where sin and cos
//   are those of pi times the distance from the nearest integer.
template <int n, class T>
TORCHAD_EXT_FUNCTION T spherical_bessel(T x) {
  const T pi = number<T>(0x1.921fb54442d18p1);
  const T u = pi * x;
  const T z = u * u;
  const T nearest = round(x);
  const T rest = pi * (x - nearest);
  const T half = number<T>(0.5) * nearest;
  const T sign = half == round(half) ? number<T>(1) : number<T>(-1);
  T value = sign * sin(rest) / u;
  if constexpr (n == 0) return x == number<T>(0) ? number<T>(1) : value;
  T before = sign * cos(rest);
  for (int k = 0; k < n; ++k) {
    const T next = (number<T>(2 * k + 1) * value - before) / z;
    before = value;
    value = next;
  }
  T series = number<T>(1);
  double scale = 1;
  TORCHAD_EXT_UNROLL
  for (int k = (is_single<T> ? 7 : 11) + n; k > 0; --k) {
    series = number<T>(1) - z * number<T>(0.5 / (k * (2 * n + 2 * k + 1))) * series;
  }
  for (int k = 3; k <= 2 * n + 1; k += 2) scale /= k;
  return abs(u) < number<T>(n + 1) ? series * number<T>(scale) : value;
}

}  // namespace torchad_ext

#include "math/special.h"
