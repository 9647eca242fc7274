// Numbers of all dtypes, as the device stores and as it computes them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "half.cuh"

namespace torchad_ext {

// float16 and bfloat16 are memory formats; numbers are computed as float or double.
__device__ __forceinline__ float to_number(float x) { return x; }
__device__ __forceinline__ double to_number(double x) { return x; }

__device__ __forceinline__ void assign(float& to, float x) { to = x; }
__device__ __forceinline__ void assign(double& to, double x) { to = x; }

template <class T>
using number_t = decltype(to_number(T{}));

// Neighbours in memory that move in one access, of 16 bytes unless said otherwise.
template <class T, int n = 16 / sizeof(T)>
struct alignas(n * sizeof(T)) Pack {
  T value[n];
  static constexpr int size = n;
};

template <class P>
bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(P) == 0;
}

}  // namespace torchad_ext
