// The operators that run pointwise kernels, for CUDA: on PyTorch's current stream and the tensors' own device.
#include "../pointwise.h"

#include "driver.h"
#include "grid.h"

namespace torchad_ext {
namespace {

struct CudaKernel : Kernel {
  const std::string symbol;
  const Entry contiguous, strided_32, strided_64;

  CudaKernel(Module& module, const char* given, int inputs, int outputs, Dtype dtype)
      : Kernel{inputs, outputs, dtype, nullptr},
        symbol(given),
        contiguous(module, symbol + "_contiguous"),
        strided_32(module, symbol + "_strided_32"),
        strided_64(module, symbol + "_strided_64") {
    name = symbol.c_str();
  }
};

struct Cuda {
  static constexpr int max_dims = most_cuda_dims;

  static void prepare(const Tensor&) {}

  static void run_summed(const Kernel&, const Loop&, const double*, int64_t, int) {
    STD_TORCH_CHECK(false, "torchad_ext: CUDA kernels give no sums");
  }

  static void run(const Kernel& kernel, const Loop& loop, const double* scalars, int64_t n, int device) {
    const auto& entries = static_cast<const CudaKernel&>(kernel);
    const double no_scalars = 0;
    if (scalars == nullptr) scalars = &no_scalars;
    const int operands = kernel.outputs + kernel.inputs;
    const int pack = pack_size(size_of(kernel.dtype));

    const std::unique_ptr<bool[]> repeated(new bool[operands]);
    bool contiguous = true;
    for (int k = 0; k < operands; ++k) {
      repeated[k] = k >= kernel.outputs && loop.repeated(k);
      contiguous = contiguous && (repeated[k] || (loop.contiguous(k) && is_aligned(loop.data[k])));
    }
    const int64_t of_a_block = pointwise_threads * (contiguous ? packs_together(kernel.inputs) * pack : 1);
    const int64_t blocks = blocks_for(n, of_a_block);
    const DeviceGuard guard(device);
    if (contiguous) {
      entries.contiguous.launch(kernel.name, device, blocks, pointwise_threads,
                                {loop.data, repeated.get(), scalars, &n});
      return;
    }
    const std::unique_ptr<int64_t[]> strided(new int64_t[strided_size(operands)]);
    write_strided(loop, operands, strided.get());
    const auto n_32 = uint32_t(n);
    const Entry& entry = n < max_index ? entries.strided_32 : entries.strided_64;
    const void* elements = n < max_index ? static_cast<const void*>(&n_32) : &n;
    entry.launch(kernel.name, device, blocks, pointwise_threads, {loop.data, strided.get(), scalars, elements});
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) { torchad_ext::Pointwise<torchad_ext::Cuda>::implement(m); }

// What follows is called by torchad_ext/_native/build.py. Nothing of it is ever freed.
extern "C" {

torchad_ext::Module* torchad_ext_cuda_module(const char* const* images, const int64_t* sizes, int count) {
  std::vector<std::string> copies;
  for (int i = 0; i < count; ++i) copies.emplace_back(images[i], sizes[i]);
  return new torchad_ext::Module(std::move(copies));
}

// The kernel that a file with TORCHAD_EXT_KERNEL(symbol, ...) was compiled to.
const torchad_ext::Kernel* torchad_ext_cuda_kernel(torchad_ext::Module* module, const char* symbol, int inputs,
                                                   int outputs, int dtype) {
  return new torchad_ext::CudaKernel(*module, symbol, inputs, outputs, torchad_ext::Dtype(dtype));
}

void torchad_ext_run_cuda(const torchad_ext::Kernel& kernel, int dims, const int64_t* sizes,
                          const int64_t* const* strides, void* const* data, const double* scalars, int device) {
  torchad_ext::run_kernel<torchad_ext::Cuda>(kernel, dims, sizes, strides, data, scalars, device);
}
}
