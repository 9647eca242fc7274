// A register full of numbers, for the CPU.
//
// Vector<T> is the vector extension of GCC and Clang: +, -, *, /, < and ?: work lane by lane, and one text becomes
// AVX-512, AVX2, SSE or NEON. float16 and bfloat16 are memory formats only; load and store convert them to float.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"

// Those of <cmath>, which takes longer to read than all headers of a kernel.
#if !defined(NAN)
#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#endif

// Reading immintrin.h takes more than a third of the time that the headers of a kernel take. These parts of it stand
// alone in the versions of GCC that are named.
#if defined(__AVX2__) && !defined(__clang__) && (__GNUC__ == 11 || __GNUC__ == 12) && !defined(_IMMINTRIN_H_INCLUDED)
#define _IMMINTRIN_H_INCLUDED
// clang-format off: each needs those before it
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
// clang-format on
#if defined(__AVX512F__)
#include <avx512fintrin.h>
#endif
#undef _IMMINTRIN_H_INCLUDED
#elif defined(__AVX2__)
#include <immintrin.h>
#endif

namespace torchad_ext {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

constexpr bool has_avx512 = vector_bytes == 64;

template <class T>
constexpr int lanes = vector_bytes / sizeof(compute_t<T>);

template <class T, int n = lanes<T>>
struct VectorOf {
  typedef T type __attribute__((vector_size(n * sizeof(T))));
};
template <class T, int n = lanes<T>>
using Vector = typename VectorOf<T, n>::type;

using Float = Vector<float>;
using Double = Vector<double>;
// What a comparison gives: for 64 bits a vector of long (GCC) or of long long (Clang), which are two types.
using Int32 = decltype(Float{} < Float{});
using Int64 = decltype(Double{} < Double{});
using UInt32 = Vector<uint32_t>;
using UInt64 = Vector<uint64_t>;
using UInt16 = Vector<uint16_t, lanes<float>>;

inline Float broadcast(float value) { return value - Float{}; }
inline Double broadcast(double value) { return value - Double{}; }

// a * b + c, rounded once.
inline Float fma(Float a, Float b, Float c) {
#if defined(__AVX512F__)
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  for (int i = 0; i < lanes<float>; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

inline Double fma(Double a, Double b, Double c) {
#if defined(__AVX512F__)
  return (Double)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Double)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  for (int i = 0; i < lanes<double>; ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
#endif
}

// The same for parts of a vector.
#if defined(__FMA__)
inline Vector<float, 4> fma(Vector<float, 4> a, Vector<float, 4> b, Vector<float, 4> c) {
  return (Vector<float, 4>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
}
#endif
#if defined(__AVX512F__)
inline Vector<float, 8> fma(Vector<float, 8> a, Vector<float, 8> b, Vector<float, 8> c) {
  return (Vector<float, 8>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline Vector<double, 4> fma(Vector<double, 4> a, Vector<double, 4> b, Vector<double, 4> c) {
  return (Vector<double, 4>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#endif

// The square root.
// Error: 0.5 ulp.
// Range: all numbers; nan below 0.
// Source: an instruction.
inline Float sqrt(Float x) {
#if defined(__AVX512F__)
  return (Float)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Float)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < lanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
inline Double sqrt(Double x) {
#if defined(__AVX512F__)
  return (Double)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (Double)_mm256_sqrt_pd((__m256d)x);
#else
  for (int i = 0; i < lanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// The smaller and the larger of a bound and x; a nan stays one. GCC would make a comparison and a blend of ?: here.
inline Float at_most(double bound, Float x) {
  const Float limit = broadcast((float)bound);
#if defined(__AVX512F__)
  return (Float)_mm512_min_ps((__m512)limit, (__m512)x);
#else
  return limit < x ? limit : x;
#endif
}
inline Double at_most(double bound, Double x) {
  const Double limit = broadcast(bound);
#if defined(__AVX512F__)
  return (Double)_mm512_min_pd((__m512d)limit, (__m512d)x);
#else
  return limit < x ? limit : x;
#endif
}
inline Float at_least(double bound, Float x) {
  const Float limit = broadcast((float)bound);
#if defined(__AVX512F__)
  return (Float)_mm512_max_ps((__m512)limit, (__m512)x);
#else
  return limit > x ? limit : x;
#endif
}
inline Double at_least(double bound, Double x) {
  const Double limit = broadcast(bound);
#if defined(__AVX512F__)
  return (Double)_mm512_max_pd((__m512d)limit, (__m512d)x);
#else
  return limit > x ? limit : x;
#endif
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

// The same for an integral n of floating type, which AVX-512 has an instruction for.
inline Float scale(Float y, Float n) {
#if defined(__AVX512F__)
  return (Float)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  return scale(y, __builtin_convertvector(n, Int32));
#endif
}
inline Double scale(Double y, Double n) {
#if defined(__AVX512F__)
  return (Double)_mm512_scalef_pd((__m512d)y, (__m512d)n);
#else
  return scale(y, __builtin_convertvector(n, Int64));
#endif
}

// Lane by lane the entry of a row at `piece` mod 16; a permutation of one or two registers where there is one.
inline Float pick(const float (&row)[16], Int32 piece) {
#if defined(__AVX512F__)
  return (Float)_mm512_permutexvar_ps((__m512i)piece, _mm512_load_ps(row));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(row), (__m256i)piece);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(row + 8), (__m256i)piece);
  return (Float)_mm256_blendv_ps(low, high, (__m256)(piece << 28));
#else
  Float picked;
  for (int i = 0; i < lanes<float>; ++i) picked[i] = row[piece[i] & 15];
  return picked;
#endif
}
inline Double pick(const double (&row)[16], Int64 piece) {
#if defined(__AVX512F__)
  return (Double)_mm512_permutex2var_pd(_mm512_load_pd(row), (__m512i)piece, _mm512_load_pd(row + 8));
#else
  Double picked;
  for (int i = 0; i < lanes<double>; ++i) picked[i] = row[piece[i] & 15];
  return picked;
#endif
}

// Is every lane within the bound? A nan is not.
inline bool all_within(Float x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_LE_OQ) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_set1_ps(bound), _CMP_LE_OQ)) == 0xff;
#else
  const auto within = (Int64)(x <= bound);
  return (within[0] & within[1]) == -1;
#endif
}

inline bool all_within(Double x, double bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(bound), _CMP_LE_OQ) == 0xff;
#elif defined(__AVX2__)
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)x, _mm256_set1_pd(bound), _CMP_LE_OQ)) == 0xf;
#else
  const Int64 within = x <= bound;
  return (within[0] & within[1]) == -1;
#endif
}

inline bool none(Int32 lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) == 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)lanes) == 0;
#else
  const auto pairs = (Int64)lanes;
  return (pairs[0] | pairs[1]) == 0;
#endif
}

// f(x) lane by lane, for inputs so rare that they do not deserve a vector path.
template <class V, class F>
__attribute__((noinline, cold)) V each_lane(V x, F f) {
  for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = f(x[i]);
  return x;
}

// A Float as two Doubles.
struct Doubles {
  using HalfFloat = Vector<float, lanes<double>>;
  Double half[2];

  Doubles(Double first, Double second) : half{first, second} {}
  explicit Doubles(Float x) {
    HalfFloat narrow[2];
    std::memcpy(narrow, &x, sizeof x);
    for (int i = 0; i < 2; ++i) half[i] = __builtin_convertvector(narrow[i], Double);
  }
  explicit operator Float() const {
    HalfFloat narrow[2];
    for (int i = 0; i < 2; ++i) narrow[i] = __builtin_convertvector(half[i], HalfFloat);
    Float x;
    std::memcpy(&x, narrow, sizeof x);
    return x;
  }
};

// f(x) computed in double: the path of float inputs that need more bits than a float has.
template <class F>
__attribute__((noinline, cold)) Float in_double(Float x, F f) {
  Doubles wide(x);
  for (Double& half : wide.half) half = f(half);
  return Float(wide);
}

inline Float load(const float* from) {
  Float v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Double load(const double* from) {
  Double v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Float v) { std::memcpy(to, &v, sizeof v); }
inline void store(double* to, Double v) { std::memcpy(to, &v, sizeof v); }

// Stores past the caches, to memory aligned to a whole vector: it is not read first, and what is in the caches stays
// there. Until store_fence, other threads may not see it.
template <class T, class V>
void store_uncached(T* to, V v) {
  store(to, v);
}
#if defined(__AVX512F__)
inline void store_uncached(float* to, Float v) { _mm512_stream_ps(to, (__m512)v); }
inline void store_uncached(double* to, Double v) { _mm512_stream_pd(to, (__m512d)v); }
inline void store_fence() { _mm_sfence(); }
#elif defined(__AVX2__)
inline void store_uncached(float* to, Float v) { _mm256_stream_ps(to, (__m256)v); }
inline void store_uncached(double* to, Double v) { _mm256_stream_pd(to, (__m256d)v); }
inline void store_fence() { _mm_sfence(); }
#else
inline void store_fence() {}
#endif

// The elements before the next vector that is aligned.
template <class T>
int64_t until_aligned(const void* to) {
  constexpr uintptr_t bytes = lanes<T> * sizeof(T);
  return int64_t(-reinterpret_cast<uintptr_t>(to) % bytes / sizeof(T));
}

inline Float load(const BFloat16* from) {
  UInt16 bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Float)float_of_bfloat16(__builtin_convertvector(bits, UInt32));
}

// Rounds to nearest, ties to even; a nan stays a nan.
inline void store(BFloat16* to, Float v) {
  const auto bits = (UInt32)v;
  const UInt32 nan = UInt32{} + 0x7fc0;
  const auto result = __builtin_convertvector(v == v ? bfloat16_of_float(bits) : nan, UInt16);
  std::memcpy(to, &result, sizeof result);
}

inline Float load(const Half* from) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  return (Float)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  // Moves exponent and mantissa into place; the factor 2^112 mends the bias and normalises the denormals.
  UInt16 half;
  std::memcpy(&half, from, sizeof half);
  const auto bits = __builtin_convertvector(half, UInt32);
  const UInt32 magnitude = (bits & 0x7fff) << 13;
  const auto finite = (UInt32)((Float)magnitude * 0x1p112f);
  return (Float)((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite) | (bits & 0x8000) << 16);
#endif
}

inline void store(Half* to, Float v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  // The adder rounds: 2^(e+13) beside a number of exponent e leaves it the eleven bits of a half.
  const auto bits = (UInt32)v;
  const UInt32 magnitude = bits & 0x7fffffff;
  const UInt32 smallest = UInt32{} + 0x38800000u;  // 2^-14, the least normal half
  const UInt32 overflow = UInt32{} + 0x477ff000u;  // 65520 rounds to infinity
  const UInt32 infinity = UInt32{} + 0x7f800000u;
  const UInt32 exponent = (magnitude > smallest ? magnitude : smallest) & 0x7f800000u;
  const auto rounder = (Float)(exponent + (13u << 23));
  const Float rounded = ((Float)(magnitude < overflow ? magnitude : smallest) + rounder) - rounder;
  const UInt32 finite = (UInt32)(rounded * 0x1p-112f) >> 13;
  const UInt32 special = UInt32{} + (magnitude > infinity ? UInt32{} + 0x7e00u : UInt32{} + 0x7c00u);
  const UInt32 half = magnitude < overflow ? finite : special;
  const auto result = __builtin_convertvector(half | (bits >> 16 & 0x8000), UInt16);
  std::memcpy(to, &result, sizeof result);
#endif
}

// The first `count` numbers, and zeros.
template <class T>
Vector<compute_t<T>> load_some(const T* from, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return (Float)_mm512_maskz_loadu_ps((1u << count) - 1, from);
  if constexpr (std::is_same_v<T, double>) return (Double)_mm512_maskz_loadu_pd((1u << count) - 1, from);
#endif
  T padded[lanes<T>] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

// Stores the first `count` numbers alone.
template <class T>
void store_some(T* to, Vector<compute_t<T>> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)v);
  if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(to, (1u << count) - 1, (__m512d)v);
#endif
  T padded[lanes<T>];
  store(padded, v);
  std::memcpy(to, padded, count * sizeof(T));
}

// Numbers as memory of a type has them: a kernel computes with more bits where PyTorch compares rounded numbers.
template <class Number>
Float rounded(Float x) {
  Number memory[lanes<float>];
  store(memory, x);
  return load(memory);
}
template <class Number>
Double rounded(Double x) {
  return Doubles(rounded<Number>(Float(Doubles(x, x)))).half[0];
}
template <class Number>
double rounded(double x) {
  return rounded<Number>(broadcast((float)x))[0];
}

// Do the floats within two units in the last place of v round to the same half as v, in every lane? They do not beside
// the middle of two halves, and may not where halves have fewer bits, below 2^-14.
inline bool rounds_as_neighbours(Float v) {
  const Int32 bits = (Int32)v & 0x7fffffff;
  const Int32 beside_middle = ((bits - 0x0ffe) & 0x1fff) <= 4;
  const Int32 few_bits = ((bits < 0x38800000) & (bits != 0));
  return none(beside_middle | few_bits);
}

// x with the precision of a float, its last bit 1 if that is inexact.
inline Double round_to_odd(Double x) {
  const Int64 rest = (Int64)x & 0x1fffffff;
  return (Double)(((Int64)x ^ rest) | ((rest != 0) & (int64_t(1) << 29)));
}

}  // namespace torchad_ext
