// What every CUDA kernel here needs: numbers of all dtypes, the current stream, and launches that report their failure.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace torchad_ext {

using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "torchad_ext: ", cudaGetErrorName(error), " (", cudaGetErrorString(error),
                  ") at the launch of ", kernel);
}

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// float16 and bfloat16 are memory formats; numbers are computed as float or double.
__device__ __forceinline__ float to_number(float x) { return x; }
__device__ __forceinline__ double to_number(double x) { return x; }
__device__ __forceinline__ float to_number(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_number(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void assign(float& to, float x) { to = x; }
__device__ __forceinline__ void assign(double& to, double x) { to = x; }
__device__ __forceinline__ void assign(__half& to, float x) { to = __float2half_rn(x); }
__device__ __forceinline__ void assign(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

template <class T>
using number_t = decltype(to_number(T{}));

}  // namespace torchad_ext
