// The operators that run pointwise kernels, for CUDA: on PyTorch's current stream and the tensors' own device.
#include "cuda.cuh"
#include "pointwise.h"

namespace torchad_ext {
namespace {

struct Cuda {
  static constexpr int max_dims = 25;  // as many as PyTorch's own CUDA loops take

  static void prepare(const Tensor&) {}

  static void run(const Kernel& kernel, const Loop& loop, const double* scalars, int64_t n, const Tensor& x) {
    const DeviceGuard guard(x.get_device_index());
    const auto error = cudaError_t(kernel.run(loop, scalars, 0, n, current_stream(x)));
    check(error, "a pointwise kernel");
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) { torchad_ext::Pointwise<torchad_ext::Cuda>::implement(m); }
