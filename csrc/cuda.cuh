// CUDA and PyTorch: the current stream, and launches that report their failure.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "number.cuh"

namespace torchad_ext {

using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

// An error may be that of an earlier kernel, which CUDA reports when it hears of it.
inline void check(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, "torchad_ext: ", cudaGetErrorName(error), " (", cudaGetErrorString(error),
                  ") at the launch of ", kernel,
                  "; CUDA_LAUNCH_BLOCKING=1 in the environment shows whether an earlier kernel failed");
}

inline cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace torchad_ext
