// Numbers of all dtypes, as the device stores and as it computes them.
#pragma once

#include "../dtype.h"
#include "half.cuh"

namespace torchad_ext {

__device__ __forceinline__ float to_number(Half x) { return float_of_half(x.bits); }
__device__ __forceinline__ float to_number(BFloat16 x) { return __uint_as_float(float_of_bfloat16<uint32_t>(x.bits)); }
__device__ __forceinline__ float to_number(float x) { return x; }
__device__ __forceinline__ double to_number(double x) { return x; }

// Half types are rounded to the nearest, ties to even.
__device__ __forceinline__ void assign(Half& to, float x) { to.bits = half_of_float(x); }
__device__ __forceinline__ void assign(BFloat16& to, float x) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const uint32_t bits = __float_as_uint(x);
  to.bits = x != x ? uint16_t(0x7fff) : uint16_t(bfloat16_of_float(bits));
#endif
}
__device__ __forceinline__ void assign(float& to, float x) { to = x; }
__device__ __forceinline__ void assign(double& to, double x) { to = x; }

// Numbers as memory of a type has them: a kernel computes with more bits where PyTorch compares rounded numbers.
template <class Number>
__device__ __forceinline__ float rounded(float x) {
  Number memory;
  assign(memory, x);
  return to_number(memory);
}
template <class Number>
__device__ __forceinline__ double rounded(double x) {
  return rounded<Number>(float(x));
}

// Neighbours in memory that move in one access.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T value[n];
  static constexpr int size = n;
};

}  // namespace torchad_ext
