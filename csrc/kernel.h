// The contract between a kernel, which knows a functor and no tensors, and the glue, which knows tensors and no
// functor.
//
// A kernel is compiled by itself, without the headers of PyTorch: one for the CPU into a library that exports a
// CpuKernel, one for CUDA into an image for the GPU, from which cuda/pointwise.cpp makes a CudaKernel.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "strided.h"

namespace torchad_ext {

struct Kernel {
  int32_t inputs;
  int32_t outputs;
  Dtype dtype;
  const char* name;  // of its functor, for messages
};

struct CpuKernel : Kernel {
  // Computes the elements [begin, end) of the loop.
  void (*run)(const Loop& loop, const double* scalars, int64_t begin, int64_t end);
};

// Runs a kernel over operands of one shape, fresh dense outputs first, on the tensors' device and its current stream:
// the library of a device exports it as torchad_ext_run_cpu or torchad_ext_run_cuda. An output of stride 0 along a
// dimension is the sum along it. Raises as PyTorch does.
using RunKernel = void (*)(const Kernel& kernel, int dims, const int64_t* sizes, const int64_t* const* strides,
                           void* const* data, const double* scalars, int device);

}  // namespace torchad_ext
