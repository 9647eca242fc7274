// The contract between a kernel, which knows a functor and no tensors, and the glue, which knows tensors and no
// functor.
//
// A kernel is compiled by itself, without the headers of PyTorch, into a library that exports one Kernel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "strided.h"

namespace torchad_ext {

// The numbers of c10::ScalarType.
enum class Dtype : int32_t { float16 = 5, float32 = 6, float64 = 7, bfloat16 = 15 };

// What a device stores a number as, given its half types.
template <Dtype dtype, class Half, class BFloat16>
using storage_t = std::conditional_t<
    dtype == Dtype::float16, Half,
    std::conditional_t<dtype == Dtype::bfloat16, BFloat16, std::conditional_t<dtype == Dtype::float32, float, double>>>;

struct Kernel {
  int32_t inputs;
  int32_t outputs;
  Dtype dtype;
  // Computes the elements [begin, end) of the loop; a CUDA kernel all of them, on the stream. Returns an error code of
  // CUDA, 0 for none.
  int32_t (*run)(const Loop& loop, const double* scalars, int64_t begin, int64_t end, void* stream);
  const char* name;  // of its functor, for messages
};

// Runs a kernel over operands of one shape, fresh dense outputs first, on the tensors' device and its current stream:
// the library of a device exports it as torchad_ext_run_cpu or torchad_ext_run_cuda. Raises as PyTorch does.
using RunKernel = void (*)(const Kernel& kernel, int dims, const int64_t* sizes, const int64_t* const* strides,
                           void* const* data, const double* scalars, int device);

}  // namespace torchad_ext

// Exports a functor of so many inputs as a Kernel. Device is Cpu or Cuda.
#define TORCHAD_EXT_KERNEL(name, Device, Functor, inputs, dtype)                                                      \
  extern "C" {                                                                                                        \
  extern const torchad_ext::Kernel name;                                                                              \
  const torchad_ext::Kernel name = torchad_ext::Device::kernel<Functor, inputs, torchad_ext::Dtype::dtype>(#Functor); \
  }
