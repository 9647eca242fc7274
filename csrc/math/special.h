// Functions of probability and statistics: gamma, digamma and polygamma, scaled and inverse error functions, logit.
//
// One text for host and device, but for what CUDA has. Floats on the host are computed in double.
#pragma once

#if !defined(__CUDACC__)
extern "C" double lgamma_r(double, int*) noexcept;
#endif

namespace torchad_ext {

// c[0] + c[1] x + c[2] x^2 + ...
template <class T, int terms>
TORCHAD_EXT_FUNCTION T polynomial(const double (&c)[terms], T x) {
  T p = number<T>(c[terms - 1]);
  TORCHAD_EXT_UNROLL
  for (int k = terms - 2; k >= 0; --k) p = fma(x, p, number<T>(c[k]));
  return p;
}

#if !defined(__CUDACC__)

// f(x) in double, for an f whose terms cancel.
template <class F>
Float by_double(Float x, F f) {
  Doubles wide(x);
  for (Double& half : wide.half) half = f(half);
  return Float(wide);
}

template <class T>
T copysign(T x, T sign) {
  return keep_sign(abs(x), sign);
}

// The lgamma of the C library writes a global variable, its lgamma_r does not.
inline double lgamma_of_libm(double x) {
  int sign;
  return ::lgamma_r(x, &sign);
}

// log |Gamma(x)| with the absolute error of its terms below 0. With z = |x|: (z - 1/2) (log(z) - 1) + (log(2 pi) - 1) /
// 2 and a polynomial in 1 / z for z > 3 (Stirling); (z - 1) (z - 2) times a polynomial between 1 and 3, where the zeros
// are; lgamma(z + 1) - log(z) below 1. For x < 0 by the reflection Gamma(z) Gamma(-z) = -pi / (z sin(pi z)).
inline Double lgamma_by_reflection(Double x) {
  const Double z = abs(x);
  if (!__builtin_expect(all_ordinary(z), 1)) return each_lane(x, lgamma_of_libm);
  constexpr double near[] = {
      0x1.b0ee6072093cep-2,  -0x1.9ae6509ea109ep-4,  0x1.0e0c9df29353p-5,    -0x1.95ce223a9d24ap-7,
      0x1.47974853aa7eap-8,  -0x1.145121f959a87p-9,  0x1.dfebcf8e001b7p-11,  -0x1.a96a403976f3ap-12,
      0x1.7ed733d21cbf4p-13, -0x1.5c86af6d067p-14,   0x1.402f0a28deda1p-15,  -0x1.285110f192ea9p-16,
      0x1.13e4c880cb9a3p-17, -0x1.022302a40660bp-18, 0x1.e541e1a32fbd5p-20,  -0x1.cb3ff70f30455p-21,
      0x1.b2c54c428c424p-22, -0x1.8ff67cc7ad32ep-23, 0x1.7c7b8a89c3cd7p-24,  -0x1.bdb9f4ce42d8dp-25,
      0x1.ab61d22cc9788p-26, -0x1.f849c85b95e9dp-31, 0x1.a42ed3de5b793p-32,  -0x1.3103f029c7bap-27,
      0x1.27da3df04045p-28,  0x1.4ff438323b2c8p-29,  -0x1.47270e5e1fb65p-30, -0x1.c035341ec058fp-31,
      0x1.b3541ab65bdbfp-32};
  constexpr double far[] = {0x1.5555555555553p-4,   -0x1.6c16c16bf6282p-9, 0x1.a01a00e5622e3p-11,
                            -0x1.3813174192ecdp-11, 0x1.b9326a92f5e65p-11, -0x1.f3dd1d895f8ddp-10,
                            0x1.8f44ea0ec1548p-8,   -0x1.7937174913bd7p-6, 0x1.4d2171357754ap-4,
                            -0x1.a820884cf6c52p-3,  0x1.0c1788f27869cp-2};
  const Long<Double> log2 = long_log2(split_log(z));
  const Double logarithm = log2.head * 0x1.62e42fefa39efp-1;
  const Double rest = fma(log2.head, broadcast(0x1.62e42fefa39efp-1), -logarithm) +
                      fma(log2.head, broadcast(0x1.abc9e3b39803fp-56), log2.tail * 0x1.62e42fefa39efp-1);
  const Double less = logarithm - 1.0;
  const Double correction = polynomial(far, 1.0 / (z * z)) / z + 0x1.acfe390c97d69p-2;
  const Double stirling = fma(z - 0.5, less, fma(z - 0.5, ((logarithm - less) - 1.0) + rest, correction));
  const Double t = z < 1.0 ? z - 1.0 : z - 2.0;
  const Double between = t * (z < 1.0 ? z : z - 1.0) * polynomial(near, t);
  const Double y = z > 3.0 ? stirling : z < 1.0 ? between - (logarithm + rest) : between;
  if (all_within(-x, 0)) return y;
  const Double pi = broadcast(3.14159265358979323846);
  return x < 0.0 ? log(pi / abs(sin(pi * (x - round(x))))) - (logarithm + rest) - y : y;
}
inline Float lgamma(Float x) { return by_double(x, lgamma_by_reflection); }

// log |Gamma(x)|.
// Error: 4 ulp, for x > 0 below 1.9 ulp.
// Range: all numbers.
// Source: lgamma_by_reflection; the C library where the result is small, near zeros of the negative axis.
inline Double lgamma(Double x) {
  Double y = lgamma_by_reflection(x);
  if (__builtin_expect(all_within(x < 0.0 ? -abs(y) : broadcast(-0.5), -0.5), 1)) return y;
  for (int i = 0; i < lanes<double>; ++i) {
    if (x[i] < 0 && !(__builtin_fabs(y[i]) > 0.5)) y[i] = lgamma_of_libm(x[i]);
  }
  return y;
}

// exp(x^2) erfc(x).
// Error: 2.8 ulp.
// Range: all numbers.
// Source: the polynomials under erfc, beyond them the asymptotic series (Abramowitz and Stegun, 7.1.23); 2 exp(x^2) -
//   erfcx(-x) below 0.
template <class T>
T erfcx(T x) {
  constexpr double limit = is_single<T> ? 10 : 26.5;
  const T one = number<T>(1);
  const T z = abs(x);
  T near;
  if constexpr (is_single<T>) {
    near = scaled_erfc(erfcx_float, (Int32)(z + erfcx_float.shift) >> 21, z, T{});
  } else {
    near = scaled_erfc(erfcx_double, (Int64)((UInt64)(z + erfcx_double.shift) >> 50), z, T{});
  }
  if (__builtin_expect(all_within(z, limit) && all_within(-x, 0), 1)) return near;
  const T w = number<T>(0.5) / (z * z);
  T series = one;
  TORCHAD_EXT_UNROLL
  for (int k = is_single<T> ? 5 : 8; k > 0; --k) series = one - w * number<T>(2 * k - 1) * series;
  const T positive = z > number<T>(limit) ? number<T>(0x1.20dd750429b6dp-1) * series / z : near;  // 1 / sqrt(pi)
  const T square = z * z;
  const T gaussian = exp(square);
  const T exact = gaussian < number<T>(INFINITY) ? fma(gaussian, fma(z, z, -square), gaussian) : gaussian;
  return x < number<T>(0) ? exact + (exact - positive) : positive;
}

// The y with erf(y) = x.
// Error: 1.8 ulp.
// Range: [-1, 1]; nan beyond.
// Source: x times a polynomial in w = -log(1 - x^2) or its root, right to 1e-6 (after Giles, Approximating the erfinv
//   function, 2012), and a step of Halley, which triples the digits: y - u / (1 + y u) with u = (erf(y) - x) / erf'(y).
template <class T>
T erfinv(T x) {
  constexpr double near[] = {1.62354239,    0.241630689,   -0.00573952978, -0.000837193318,
                             0.00019596176, -1.215359e-05, -1.96678e-06,   3.49815929e-07};
  constexpr double far[] = {4.11721626,     1.01001251,      0.000658810943,  -0.000588109923, 0.000228995119,
                            -6.0174657e-05, -2.99870511e-06, -8.46429589e-06, 1.46495218e-05,  -4.1901713e-06};
  const T one = number<T>(1);
  const T a = abs(x);
  const T w = -log1p(-(a * a));
  const T slope =
      w < number<T>(6) ? polynomial(near, w - number<T>(3)) : polynomial(far, sqrt(w) - number<T>(4.27474487139));
  T y = a * slope;
  const T inverse = exp(y * y);
  const T error = a > number<T>(0.7) ? fma(one - a, inverse, -erfcx(y)) : (erf(y) - a) * inverse;
  const T u = number<T>(0x1.c5bf891b4ef6bp-1) * error;  // sqrt(pi) / 2
  y = y - u / fma(y, u, one);
  const T end = a == one ? number<T>(INFINITY) : number<T>(NAN);
  return keep_sign(a < one ? y : end, x);
}

#endif

// The polynomial P_n with the n-th derivative P_n(cot u) of cot u: P_{n+1}(c) = -(1 + c^2) P_n'(c).
template <int n>
struct DerivativeOfCot {
  double c[n + 2] = {0, 1};

  TORCHAD_EXT_FUNCTION constexpr DerivativeOfCot() {
    for (int order = 0; order < n; ++order) {
      double next[n + 3] = {};
      for (int k = 1; k <= order + 1; ++k) {
        next[k - 1] -= k * c[k];
        next[k + 1] -= k * c[k];
      }
      for (int k = 0; k <= order + 2; ++k) c[k] = next[k];
    }
  }
};

// Bernoulli's numbers B_2, B_4, ...
constexpr int bernoulli_terms = 11;
template <int n>
struct EulerMaclaurin {
  double c[bernoulli_terms + 1];  // B_2j (2j + n - 1)! / (2j)!, and the same for 0

  TORCHAD_EXT_FUNCTION constexpr EulerMaclaurin() : c{} {
    const double bernoulli[] = {1.0,           1.0 / 6, -1.0 / 30,     1.0 / 42,      -1.0 / 30,       5.0 / 66,
                                -691.0 / 2730, 7.0 / 6, -3617.0 / 510, 43867.0 / 798, -174611.0 / 330, 854513.0 / 138};
    for (int j = n == 0; j <= bernoulli_terms; ++j) {
      double factor = n == 0 ? 1.0 / (2 * j) : 1.0;
      for (int k = 2 * j + 1; k < 2 * j + n; ++k) factor *= k;
      c[j] = bernoulli[j] * factor;
    }
  }
};

// The polygamma function, the n-th derivative of digamma, which is the first of log Gamma.
// Error: 4 + 2 n ulp, next to a zero on the negative axis of the largest value nearby.
// Range: all numbers.
// Source: for x > 0 the recurrence n! / x^(n+1) to a larger argument and there the asymptotic series (Abramowitz and
//   Stegun, 6.3.18 and 6.4.11), in which all terms of n > 0 have one sign; digamma between 1 and 3 is the distance from
//   its zero times a polynomial; for x < 0 the reflection by the n-th derivative of cot (6.4.7).
template <int n, class T>
TORCHAD_EXT_FUNCTION T polygamma(T x) {
  constexpr int shifts = n == 0 ? 5 : 8;
  constexpr EulerMaclaurin<n> coefficients{};
  const T zero = number<T>(0);
  const T one = number<T>(1);
  const T z = x < zero ? one - x : x;
  const T inverse = one / (z + number<T>(shifts));
  const T series = polynomial(coefficients.c, inverse * inverse);
  T value;
  if constexpr (n == 0) {
    T sum = number<T>(0.5) * inverse + series;
    for (int k = shifts - 1; k >= 0; --k) sum = sum + one / (z + number<T>(k));
    constexpr double near[] = {
        0x1.9213d46736ba4p-1,   -0x1.0aff270ca07a7p-2,  0x1.be76b26db8065p-4,  -0x1.95ec0c3ba92eap-5,
        0x1.802924f9a5593p-6,   -0x1.7389aa80b1598p-7,  0x1.6bdf5e1b0f5dp-8,   -0x1.6714cfd6eee8ep-9,
        0x1.64075fe15ceefp-10,  -0x1.620f085583d13p-11, 0x1.60c690cbf7adbp-12, -0x1.5feeea62bf9c3p-13,
        0x1.5f612ad243f72p-14,  -0x1.5f0b609bedc15p-15, 0x1.5ecd5f7b919d5p-16, -0x1.5e2ddb0ad4323p-17,
        0x1.5e12899cb8187p-18,  -0x1.6301bf3b70a3ap-19, 0x1.62f5a9f6b8f6ap-20, -0x1.3b967e28e8a2ap-21,
        0x1.3b9123664e461p-22,  -0x1.0e2d70022f1d1p-22, 0x1.0e2c3ee23304fp-23, 0x1.7fbf6756f496fp-25,
        -0x1.7fc06e5ffaf83p-26, -0x1.1cb3bb1923305p-24, 0x1.1cb3a9a069b8p-25,  0x1.60352909aad8ap-26,
        -0x1.60352b509d628p-27, -0x1.77b048e70460dp-28, 0x1.77b0419eeab12p-29};
    constexpr double root = 0x1.762d86356be3fp0;
    constexpr double rest = is_single<T> ? root - float(root) : 0x1.b86a722197829p-54;
    const auto small = z < one;
    const T t = small ? z - one : z - number<T>(2);
    const T distance = ((small ? z + one : z) - number<T>(root)) - number<T>(rest);
    const T between = distance * polynomial(near, t);
    value = z > number<T>(3) ? log(z + number<T>(shifts)) - sum : small ? between - one / z : between;
  } else {
    double factorial = 1;  // (n - 1)!
    for (int k = 2; k < n; ++k) factorial *= k;
    T power = number<T>(1);
    for (int k = 0; k < n; ++k) power = power * inverse;
    value = power * fma(number<T>(0.5 * n * factorial), inverse, series);
    for (int k = shifts - 1; k >= 0; --k) {
      const T each = one / (z + number<T>(k));
      power = number<T>(n * factorial) * each;
      for (int i = 0; i < n; ++i) power = power * each;
      value = value + power;
    }
    if constexpr (n % 2 == 0) value = -value;
  }
  const T r = x - round(x);
  const T angle = number<T>(3.14159265358979323846) * r;
  constexpr DerivativeOfCot<n> derivative{};
  double scale = 3.14159265358979323846;
  for (int k = 0; k < n; ++k) scale *= 3.14159265358979323846;
  const T reflected = (n % 2 ? -value : value) - number<T>(scale) * polynomial(derivative.c, cos(angle) / sin(angle));
  const T pole = number<T>(n == 0 ? NAN : n % 2 ? INFINITY : -INFINITY);
  return x < zero ? (r == zero ? pole : reflected) : value;
}

// (-1)^n times the n-th derivative of erfcx, 2^(n+1) / sqrt(pi) times the integral of t^n exp(-t^2 - 2 x t) over t > 0.
// Error: 4 * 5^n ulp, for x > 2 below 5 ulp.
// Range: all numbers.
// Source: f_{n+1} = 2 n f_{n-1} - 2 x f_n, f_1 = 2 / sqrt(pi) - 2 x f_0; upwards for small x, downwards by the
//   continued fraction f_n / f_{n-1} = 2 n / (2 x + f_{n+1} / f_n) for large x (Gautschi, Computational aspects of
//   three-term recurrence relations, 1967).
template <int n, class T>
TORCHAD_EXT_FUNCTION T erfcx(T x) {
  if constexpr (n == 0) return erfcx(x);
  constexpr double threshold = 1.5;
  constexpr int last = n + (is_single<T> ? 18 : 60);
  const T twice = x + x;
  T before = number<T>(0x1.20dd750429b6dp0);  // 2 / sqrt(pi)
  T upwards = erfcx(x);
  T downwards = upwards;
  for (int k = 0; k < n; ++k) {
    const T next = (k == 0 ? before : number<T>(2 * k) * before) - twice * upwards;
    before = upwards;
    upwards = next;
  }
  const T large = x > number<T>(threshold) ? x : number<T>(threshold);
  const T root = sqrt(fma(large, large, number<T>(2 * last)));
  T ratio = sqrt(fma(large, large, number<T>(2 * last - 1)) + large / root) - large;
  for (int k = last - 1; k > 0; --k) {
    ratio = number<T>(2 * k) / (large + large + ratio);
    if (k <= n) downwards = downwards * ratio;
  }
  return x > number<T>(threshold) ? downwards : upwards;
}

#if !defined(__CUDACC__)
template <int n>
Float polygamma(Float x) {
  return by_double(x, [](Double v) { return polygamma<n>(v); });
}
template <int n>
Float erfcx(Float x) {
  if constexpr (n == 0) return erfcx(x);
  return by_double(x, [](Double v) { return erfcx<n>(v); });
}
#endif

// The logarithm of the normal distribution function.
// Error: 3.6 ulp.
// Range: all numbers.
// Source: log(erfc(-x / sqrt(2)) / 2) by erfcx, which does not amplify the rounding error of x / sqrt(2).
template <class T>
TORCHAD_EXT_FUNCTION T log_ndtr(T x) {
  const T half = number<T>(0.5);
  const T square = x * x;
  const T tail = half * erfcx(number<T>(0x1.6a09e667f3bcdp-1) * abs(x));  // exp(x^2 / 2) times the smaller part
  const T y = exp(-half * square);
  const T gaussian = y > number<T>(0) ? y - y * (half * fma(x, x, -square)) : y;
  return x < number<T>(0) ? log(tail) - (half * x) * x : log1p(-(tail * gaussian));
}

// log(x / (1 - x)).
// Error: 2.6 ulp.
// Range: [0, 1]; nan beyond.
// Source: log of the quotient, near 1 / 2 by log1p.
template <class T>
TORCHAD_EXT_FUNCTION T logit(T x) {
  const T one = number<T>(1);
  const T rest = one - x;
  const auto middle = (x > number<T>(0.35)) & (x < number<T>(0.65));
  return middle ? log1p((x + x - one) / rest) : log(x / rest);
}

// log(e^a + e^b) and log2(2^a + 2^b).
// Error: 2 ulp of the larger argument or of the result.
// Range: all numbers.
// Source: the larger one, and log1pexp of the distance.
template <class T>
TORCHAD_EXT_FUNCTION T logaddexp(T a, T b) {
  const T distance = a == b ? number<T>(0) : abs(a - b);
  return maximum(a, b) + log1pexp(-distance);
}
template <class T>
TORCHAD_EXT_FUNCTION T logaddexp2(T a, T b) {
  const T distance = a == b ? number<T>(0) : abs(a - b);
  return fma(number<T>(0x1.71547652b82fep0), log1p(exp2(-distance)), maximum(a, b));
}

// -x log x.
// Error: 1.6 ulp.
// Range: all numbers; 0 at 0, minus infinity below.
// Source: log.
template <class T>
TORCHAD_EXT_FUNCTION T entr(T x) {
  const T zero = number<T>(0);
  return x > zero ? -(x * log(x)) : x == zero ? zero : x < zero ? number<T>(-INFINITY) : x;
}

}  // namespace torchad_ext
