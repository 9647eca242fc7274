// The operators that run pointwise kernels, for CUDA: on PyTorch's current stream and the tensors' own device.
#include "cuda.cuh"
#include "pointwise.h"

namespace torchad_ext {
namespace {

struct Cuda {
  static constexpr int max_dims = 25;  // as many as PyTorch's own CUDA loops take

  static void prepare(const Tensor&) {}

  static void run(const Kernel& kernel, const Loop& loop, const double* scalars, int64_t n, int device) {
    const DeviceGuard guard(device);
    check(cudaError_t(kernel.run(loop, scalars, 0, n, current_stream(device))), kernel.name);
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) { torchad_ext::Pointwise<torchad_ext::Cuda>::implement(m); }

extern "C" void torchad_ext_run_cuda(const torchad_ext::Kernel& kernel, int dims, const int64_t* sizes,
                                     const int64_t* const* strides, void* const* data, const double* scalars,
                                     int device) {
  torchad_ext::run_kernel<torchad_ext::Cuda>(kernel, dims, sizes, strides, data, scalars, device);
}
