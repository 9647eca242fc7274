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

// Elements that a CPU kernel computes in one go. Element i of an output is stored at place i; that of an input stands
// at data[i * step], where step is 1, or 0 for one vector full of the same number.
struct CpuInput {
  const void* data;
  int64_t step;
};
struct CpuRun {
  int64_t size;
  bool cached;  // are the results to stay in the caches?
  void* const* to;
  const CpuInput* from;
};

struct CpuKernel : Kernel {
  // Computes the runs that next(runs, run) gives, until it gives no more.
  void (*run)(const double* scalars, bool (*next)(void* runs, CpuRun& run), void* runs);
};

// Runs a kernel over operands of one shape, fresh dense outputs first, on the tensors' device and its current stream:
// the library of a device exports it as torchad_ext_run_cpu or torchad_ext_run_cuda. An output of stride 0 along a
// dimension is the sum along it. Raises as PyTorch does.
using RunKernel = void (*)(const Kernel& kernel, int dims, const int64_t* sizes, const int64_t* const* strides,
                           void* const* data, const double* scalars, int device);

}  // namespace torchad_ext
