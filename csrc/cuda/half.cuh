// The conversions of float16, by the instructions that CUDA's header for it stands for: kernels include none of CUDA's.
#pragma once

#include <cstdint>

namespace torchad_ext {

__device__ __forceinline__ float float_of_half(uint16_t bits) {
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
  return number;
}

// To the nearest, ties to even.
__device__ __forceinline__ uint16_t half_of_float(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

}  // namespace torchad_ext
