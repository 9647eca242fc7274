// The CUDA loop: any functor over any strided inputs.
//
// Contiguous data moves in 16-byte packs, one pack of every input per thread and step; an input that repeats one
// element is read once. Everything else goes element by element through the strides. Launches are on PyTorch's current
// stream and on the tensors' own device.
#pragma once

#include <algorithm>

#include "cuda.cuh"
#include "pointwise.h"

namespace torchad_ext {

template <class T>
constexpr int pack_size = 16 / sizeof(T);

template <class T>
struct alignas(16) Pack {
  T value[pack_size<T>];
};

template <class T, int operands>
struct Operands {
  T* data[operands];
};

// Operand k at index i stands at data[k][i], or at data[k][0] where bit k of `repeated` is set.
template <class Functor, class T, int outputs, int operands>
__global__ void __launch_bounds__(256) contiguous_kernel(Operands<T, operands> operand, unsigned repeated, int64_t n) {
  constexpr int inputs = operands - outputs;
  using Number = number_t<T>;
  const int64_t packs = n / pack_size<T>;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;

  T constant[inputs];
#pragma unroll
  for (int k = 0; k < inputs; ++k) {
    if (repeated >> (outputs + k) & 1) constant[k] = operand.data[outputs + k][0];
  }

  for (int64_t i = thread; i < packs; i += stride) {
    Pack<T> from[inputs], to[outputs];
#pragma unroll
    for (int k = 0; k < inputs; ++k) {
      if (repeated >> (outputs + k) & 1) {
#pragma unroll
        for (int j = 0; j < pack_size<T>; ++j) from[k].value[j] = constant[k];
      } else {
        from[k] = reinterpret_cast<const Pack<T>*>(operand.data[outputs + k])[i];
      }
    }
#pragma unroll
    for (int j = 0; j < pack_size<T>; ++j) {
      Number x[inputs];
#pragma unroll
      for (int k = 0; k < inputs; ++k) x[k] = to_number(from[k].value[j]);
      const auto y = call<Functor>(x);
#pragma unroll
      for (int k = 0; k < outputs; ++k) assign(to[k].value[j], y.value[k]);
    }
#pragma unroll
    for (int k = 0; k < outputs; ++k) reinterpret_cast<Pack<T>*>(operand.data[k])[i] = to[k];
  }

  const int64_t last = packs * pack_size<T> + thread;  // fewer than a pack are left
  if (last < n) {
    Number x[inputs];
#pragma unroll
    for (int k = 0; k < inputs; ++k) {
      x[k] = to_number(repeated >> (outputs + k) & 1 ? constant[k] : operand.data[outputs + k][last]);
    }
    const auto y = call<Functor>(x);
#pragma unroll
    for (int k = 0; k < outputs; ++k) assign(operand.data[k][last], y.value[k]);
  }
}

template <class Functor, class T, int outputs, class Index, class Loop, int operands>
__global__ void __launch_bounds__(256) strided_kernel(Operands<T, operands> operand, Loop loop, Index n) {
  constexpr int inputs = operands - outputs;
  using Number = number_t<T>;
  const Index stride = Index(gridDim.x) * blockDim.x;
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    int64_t offset[operands];
    loop.offsets(i, offset);
    Number x[inputs];
#pragma unroll
    for (int k = 0; k < inputs; ++k) x[k] = to_number(operand.data[outputs + k][offset[outputs + k]]);
    const auto y = call<Functor>(x);
#pragma unroll
    for (int k = 0; k < outputs; ++k) assign(operand.data[k][offset[k]], y.value[k]);
  }
}

struct Cuda {
  static constexpr int max_dims = 25;  // as many as PyTorch's own CUDA loops take

  using Half = __half;
  using BFloat16 = __nv_bfloat16;
  template <class T>
  using Number = T;

  static void prepare(const Tensor&) {}

  template <class Functor, class T, int outputs, int operands>
  static void run(const Strided<operands, max_dims>& loop, void* const (&data)[operands], const Tensor& x) {
    constexpr int threads = 256;
    constexpr int64_t max_blocks = int64_t(1) << 22;
    constexpr int64_t max_index = int64_t(1) << 31;  // below it a 32-bit index, stepped once, does not wrap
    const DeviceGuard guard(x.get_device_index());
    const cudaStream_t stream = current_stream(x);
    const int64_t n = loop.elements();

    Operands<T, operands> operand;
    unsigned repeated = 0;
    bool contiguous = true;
    for (int k = 0; k < operands; ++k) {
      operand.data[k] = static_cast<T*>(data[k]);
      if (k >= outputs && loop.repeated(k)) {
        repeated |= 1u << k;
      } else {
        contiguous = contiguous && loop.contiguous(k) && reinterpret_cast<uintptr_t>(data[k]) % sizeof(Pack<T>) == 0;
      }
    }
    const int64_t work = contiguous ? (n + pack_size<T> - 1) / pack_size<T> : n;
    const int blocks = int(std::min((work + threads - 1) / threads, max_blocks));
    if (contiguous) {
      contiguous_kernel<Functor, T, outputs><<<blocks, threads, 0, stream>>>(operand, repeated, n);
    } else if (n < max_index) {
      strided_kernel<Functor, T, outputs, uint32_t><<<blocks, threads, 0, stream>>>(operand, loop, uint32_t(n));
    } else {
      strided_kernel<Functor, T, outputs, int64_t><<<blocks, threads, 0, stream>>>(operand, loop, n);
    }
    check_launch(__PRETTY_FUNCTION__);
  }
};

}  // namespace torchad_ext
