// float16 and bfloat16 as they lie in memory, and their conversions by the instructions that CUDA's headers for them
// stand for: with these headers a kernel takes half as long again to compile.
#pragma once

#include <cstdint>

namespace torchad_ext {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_number(Half x) {
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(x.bits));
  return number;
}
__device__ __forceinline__ float to_number(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// To the nearest, ties to even.
__device__ __forceinline__ void assign(Half& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ __forceinline__ void assign(BFloat16& to, float x) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const uint32_t bits = __float_as_uint(x);
  to.bits = x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

}  // namespace torchad_ext
