// In place of csrc/cuda.cuh: there is one device, and no stream.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "number.cuh"

namespace torchad_ext {

using torch::stable::Tensor;

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline void check(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, "torchad_ext: ", cudaGetErrorName(error), " at the launch of ", kernel);
}
inline void check_launch(const char*) {}
inline cudaStream_t current_stream(int) { return nullptr; }

}  // namespace torchad_ext
