// Numbers of all dtypes, as the device stores and as it computes them.
#pragma once

#include "half.cuh"

namespace torchad_ext {

// float16 and bfloat16 are memory formats; numbers are computed as float or double.
__device__ __forceinline__ float to_number(float x) { return x; }
__device__ __forceinline__ double to_number(double x) { return x; }

__device__ __forceinline__ void assign(float& to, float x) { to = x; }
__device__ __forceinline__ void assign(double& to, double x) { to = x; }

template <class T>
using number_t = decltype(to_number(T{}));

// Neighbours in memory that move in one access.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T value[n];
  static constexpr int size = n;
};

}  // namespace torchad_ext
