// Floats whose sin and cos are computed without a branch.
//
// A branch for huge arguments in each of them would keep the elements of a thread apart: none of their instructions
// could fill the waits of another. So those of a Quick are wrong for huge arguments and say so, and the loop computes
// what is not certain again, in floats. Without a sin or cos nothing is left of this in the code.
#pragma once

#include "../functor.h"
#include "number.cuh"

namespace torchad_ext {

struct Quick {
  float value;
  bool certain;  // was no argument huge on the way to it?

  Quick() = default;
  TORCHAD_EXT_FUNCTION Quick(float value, bool certain) : value(value), certain(certain) {}
  TORCHAD_EXT_FUNCTION explicit Quick(float value) : Quick(value, true) {}
  TORCHAD_EXT_FUNCTION explicit Quick(double value) : Quick(float(value)) {}
};

// The result of a comparison.
struct QuickMask {
  bool value;
  bool certain;

  QuickMask() = default;
  TORCHAD_EXT_FUNCTION QuickMask(bool value, bool certain = true) : value(value), certain(certain) {}
};

__device__ __forceinline__ float to_number(Quick x) { return x.value; }

TORCHAD_EXT_FUNCTION bool is_certain(Quick x) { return x.certain; }
TORCHAD_EXT_FUNCTION bool is_certain(double) { return true; }

// What the loop computes numbers as.
template <class Number>
using quick_t = std::conditional_t<is_single<Number>, Quick, Number>;

TORCHAD_EXT_FUNCTION Quick sin_by_quarters(Quick x, uint32_t quarters) {
  const Reduced reduced = reduce_by_half_pi(x.value);
  return {sin_by_quadrant(reduced.r, reduced.quadrant + quarters), x.certain && fabsf(x.value) <= reducible};
}
TORCHAD_EXT_FUNCTION Quick sin(Quick x) { return sin_by_quarters(x, 0); }
TORCHAD_EXT_FUNCTION Quick cos(Quick x) { return sin_by_quarters(x, 1); }

#define TORCHAD_EXT_UNARY(f) \
  TORCHAD_EXT_FUNCTION Quick f(Quick x) { return {f(x.value), x.certain}; }
#define TORCHAD_EXT_BINARY(f) \
  TORCHAD_EXT_FUNCTION Quick f(Quick x, Quick y) { return {f(x.value, y.value), x.certain && y.certain}; }
#define TORCHAD_EXT_OPERATOR(sign) \
  TORCHAD_EXT_FUNCTION Quick operator sign(Quick x, Quick y) { return {x.value sign y.value, x.certain && y.certain}; }
#define TORCHAD_EXT_COMPARISON(sign)                               \
  TORCHAD_EXT_FUNCTION QuickMask operator sign(Quick x, Quick y) { \
    return {x.value sign y.value, x.certain && y.certain};         \
  }

TORCHAD_EXT_FUNCTION Quick operator-(Quick x) { return {-x.value, x.certain}; }
TORCHAD_EXT_OPERATOR(+)
TORCHAD_EXT_OPERATOR(-)
TORCHAD_EXT_OPERATOR(*)
TORCHAD_EXT_OPERATOR(/)
TORCHAD_EXT_COMPARISON(<)
TORCHAD_EXT_COMPARISON(<=)
TORCHAD_EXT_COMPARISON(>)
TORCHAD_EXT_COMPARISON(>=)
TORCHAD_EXT_COMPARISON(==)
TORCHAD_EXT_COMPARISON(!=)

TORCHAD_EXT_FUNCTION QuickMask operator!(QuickMask a) { return {!a.value, a.certain}; }
TORCHAD_EXT_FUNCTION QuickMask operator&(QuickMask a, QuickMask b) {
  return {a.value && b.value, a.certain && b.certain};
}
TORCHAD_EXT_FUNCTION QuickMask operator|(QuickMask a, QuickMask b) {
  return {a.value || b.value, a.certain && b.certain};
}
TORCHAD_EXT_FUNCTION QuickMask operator!=(QuickMask a, QuickMask b) {
  return {a.value != b.value, a.certain && b.certain};
}
TORCHAD_EXT_FUNCTION Quick where(QuickMask chosen, Quick a, Quick b) {
  return {chosen.value ? a.value : b.value, chosen.certain && a.certain && b.certain};
}

TORCHAD_EXT_UNARY(abs)
TORCHAD_EXT_UNARY(sign)
TORCHAD_EXT_UNARY(sqrt)
TORCHAD_EXT_UNARY(rsqrt)
TORCHAD_EXT_UNARY(reciprocal)
TORCHAD_EXT_UNARY(exp)
TORCHAD_EXT_UNARY(expm1)
TORCHAD_EXT_UNARY(exp2)
TORCHAD_EXT_UNARY(exp_minus_square)
TORCHAD_EXT_UNARY(log)
TORCHAD_EXT_UNARY(log1p)
TORCHAD_EXT_UNARY(log2)
TORCHAD_EXT_UNARY(log10)
TORCHAD_EXT_UNARY(log1pexp)
TORCHAD_EXT_UNARY(sigmoid)
TORCHAD_EXT_UNARY(logistic_density)
TORCHAD_EXT_UNARY(tanh_half)
TORCHAD_EXT_UNARY(softsign)
TORCHAD_EXT_UNARY(tanhshrink)
TORCHAD_EXT_UNARY(one_minus_square)
TORCHAD_EXT_UNARY(tan)
TORCHAD_EXT_UNARY(asin)
TORCHAD_EXT_UNARY(acos)
TORCHAD_EXT_UNARY(atan)
TORCHAD_EXT_UNARY(sinh)
TORCHAD_EXT_UNARY(cosh)
TORCHAD_EXT_UNARY(tanh)
TORCHAD_EXT_UNARY(asinh)
TORCHAD_EXT_UNARY(acosh)
TORCHAD_EXT_UNARY(atanh)
TORCHAD_EXT_UNARY(erf)
TORCHAD_EXT_UNARY(erfc)
TORCHAD_EXT_UNARY(erfinv)
TORCHAD_EXT_UNARY(lgamma)
TORCHAD_EXT_UNARY(log_ndtr)
TORCHAD_EXT_UNARY(logit)
TORCHAD_EXT_UNARY(entr)
TORCHAD_EXT_UNARY(ndtr)
TORCHAD_EXT_UNARY(normal_density)
TORCHAD_EXT_UNARY(floor)
TORCHAD_EXT_UNARY(ceil)
TORCHAD_EXT_UNARY(round)
TORCHAD_EXT_UNARY(trunc)
TORCHAD_EXT_BINARY(atan2)
TORCHAD_EXT_BINARY(hypot)
TORCHAD_EXT_BINARY(pow)
TORCHAD_EXT_BINARY(maximum)
TORCHAD_EXT_BINARY(minimum)
TORCHAD_EXT_BINARY(fmod)
TORCHAD_EXT_BINARY(remainder)
TORCHAD_EXT_BINARY(copysign)
TORCHAD_EXT_BINARY(logaddexp)
TORCHAD_EXT_BINARY(logaddexp2)

template <class Number>
__device__ __forceinline__ Quick rounded(Quick x) {
  return {rounded<Number>(x.value), x.certain};
}
template <int n>
TORCHAD_EXT_FUNCTION Quick spherical_bessel(Quick x) {
  return {spherical_bessel<n>(x.value), x.certain};
}
template <int n>
TORCHAD_EXT_FUNCTION Quick polygamma(Quick x) {
  return {polygamma<n>(x.value), x.certain};
}
template <int n>
TORCHAD_EXT_FUNCTION Quick erfcx(Quick x) {
  return {erfcx<n>(x.value), x.certain};
}
TORCHAD_EXT_FUNCTION Quick lerp(Quick a, Quick b, Quick weight) {
  return {lerp(a.value, b.value, weight.value), a.certain && b.certain && weight.certain};
}

#undef TORCHAD_EXT_UNARY
#undef TORCHAD_EXT_BINARY
#undef TORCHAD_EXT_OPERATOR
#undef TORCHAD_EXT_COMPARISON

}  // namespace torchad_ext
