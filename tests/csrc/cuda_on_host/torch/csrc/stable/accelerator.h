// PyTorch's, but that there is one device, and no stream.
#pragma once

#include_next <torch/csrc/stable/accelerator.h>

#define aoti_torch_get_current_cuda_stream(device, stream) AOTI_TORCH_SUCCESS
#define DeviceGuard NoDeviceGuard

namespace torch::stable::accelerator {

struct NoDeviceGuard {
  explicit NoDeviceGuard(int) {}
};

}  // namespace torch::stable::accelerator
