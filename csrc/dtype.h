// The dtypes of kernels, and what a number of each is in memory and in a computation. For host and device.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define TORCHAD_EXT_HOST_DEVICE __host__ __device__
#else
#define TORCHAD_EXT_HOST_DEVICE
#endif

namespace torchad_ext {

// The numbers of c10::ScalarType.
enum class Dtype : int32_t { float16 = 5, float32 = 6, float64 = 7, bfloat16 = 15 };

// float16 and bfloat16 are memory formats only: numbers are computed as float or double.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What memory has for a number.
template <Dtype dtype>
using storage_t = std::conditional_t<
    dtype == Dtype::float16, Half,
    std::conditional_t<dtype == Dtype::bfloat16, BFloat16, std::conditional_t<dtype == Dtype::float32, float, double>>>;

constexpr int size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// The type that a number of type T is computed in.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>, float, T>;

// bfloat16 is the upper half of a float. Bits are a uint32_t or a vector of them.
template <class Bits>
TORCHAD_EXT_HOST_DEVICE Bits float_of_bfloat16(Bits bits) {
  return bits << 16;
}

// To the nearest, ties to even; not for a nan.
template <class Bits>
TORCHAD_EXT_HOST_DEVICE Bits bfloat16_of_float(Bits bits) {
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace torchad_ext
