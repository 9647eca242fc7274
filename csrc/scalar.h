// The scalar mathematics of the functors, under the same names on host and device.
//
// On the device T is float or double and CUDA's accurate functions serve. On the host T is a Vector and the functions
// are polynomials without branches. Bounds are in units in the last place (ulp) of the exact result; the coefficients
// are minimax fits by Sollya's fpminimax. Nothing is computed with fast-math on either side.
#pragma once

#if defined(__CUDACC__)
#define TORCHAD_EXT_FUNCTION __host__ __device__ __forceinline__

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
using ::cos;
using ::cosh;
using ::erf;
using ::erfc;
using ::exp;
using ::exp2;
using ::expm1;
using ::floor;
using ::hypot;
using ::log;
using ::log10;
using ::log1p;
using ::log2;
using ::pow;
using ::sin;
using ::sinh;
using ::sqrt;
using ::tan;
using ::tanh;
using ::trunc;

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

// log(1 + e^x), by e^-|x|, which does not overflow.
template <class T>
TORCHAD_EXT_FUNCTION T log1pexp(T x) {
  return (x > T(0) ? x : T(0)) + log1p(exp(-abs(x)));
}

}  // namespace torchad_ext

#else
#define TORCHAD_EXT_FUNCTION inline

#include "scalar/basic.h"
#include "scalar/error_function.h"
#include "scalar/exponential.h"
#include "scalar/logarithm.h"
#include "scalar/trigonometric.h"

#endif

namespace torchad_ext {

template <class T>
TORCHAD_EXT_FUNCTION T rsqrt(T x) {
  return number<T>(1) / sqrt(x);
}

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

}  // namespace torchad_ext
