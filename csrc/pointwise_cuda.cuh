// The CUDA loop: any functor over any strided inputs.
//
// Contiguous data moves in 16-byte packs, one pack of every input per thread and step; an input that repeats one
// element is read once. Everything else goes element by element through the strides.
#pragma once

#include <algorithm>

#include "functor.h"
#include "kernel.h"
#include "number.cuh"

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
  bool repeated[operands];  // the same element at every index
};

// Operand k at index i stands at data[k][i], or at data[k][0] where it is repeated.
template <class Functor, class T, int outputs, int operands>
__global__ void __launch_bounds__(256) contiguous_kernel(Functor functor, Operands<T, operands> operand, int64_t n) {
  constexpr int inputs = operands - outputs;
  using Number = number_t<T>;
  const int64_t packs = n / pack_size<T>;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;

  T constant[inputs];
#pragma unroll
  for (int k = 0; k < inputs; ++k) {
    if (operand.repeated[outputs + k]) constant[k] = operand.data[outputs + k][0];
  }

  for (int64_t i = thread; i < packs; i += stride) {
    Pack<T> from[inputs], to[outputs];
#pragma unroll
    for (int k = 0; k < inputs; ++k) {
      if (operand.repeated[outputs + k]) {
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
      const auto y = call(functor, x);
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
      x[k] = to_number(operand.repeated[outputs + k] ? constant[k] : operand.data[outputs + k][last]);
    }
    const auto y = call(functor, x);
#pragma unroll
    for (int k = 0; k < outputs; ++k) assign(operand.data[k][last], y.value[k]);
  }
}

template <class Functor, class T, int outputs, int operands, class Loop, class Index>
__global__ void __launch_bounds__(256)
    strided_kernel(Functor functor, Operands<T, operands> operand, Loop loop, Index n) {
  constexpr int inputs = operands - outputs;
  using Number = number_t<T>;
  const Index stride = Index(gridDim.x) * blockDim.x;
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    int64_t offset[operands];
    loop.offsets(i, offset);
    Number x[inputs];
#pragma unroll
    for (int k = 0; k < inputs; ++k) x[k] = to_number(operand.data[outputs + k][offset[outputs + k]]);
    const auto y = call(functor, x);
#pragma unroll
    for (int k = 0; k < outputs; ++k) assign(operand.data[k][offset[k]], y.value[k]);
  }
}

struct Cuda {
  template <class Functor, class T, int inputs>
  static int32_t run(const Loop& loop, const double* scalars, int64_t, int64_t n, void* cuda_stream) {
    constexpr int outputs = output_count<Functor, number_t<T>, inputs>;
    constexpr int operands = outputs + inputs;
    constexpr int threads = 256;
    constexpr int64_t max_blocks = int64_t(1) << 22;
    constexpr int64_t max_index = int64_t(1) << 31;  // below it a 32-bit index, stepped once, does not wrap
    const auto functor = make_functor<Functor>(scalars);
    const auto stream = static_cast<cudaStream_t>(cuda_stream);

    Operands<T, operands> operand;
    bool contiguous = true;
    for (int k = 0; k < operands; ++k) {
      operand.data[k] = static_cast<T*>(loop.data[k]);
      operand.repeated[k] = k >= outputs && loop.repeated(k);
      if (!operand.repeated[k]) {
        contiguous =
            contiguous && loop.contiguous(k) && reinterpret_cast<uintptr_t>(loop.data[k]) % sizeof(Pack<T>) == 0;
      }
    }
    const int64_t work = contiguous ? (n + pack_size<T> - 1) / pack_size<T> : n;
    const int blocks = int(std::min((work + threads - 1) / threads, max_blocks));
    if (contiguous) {
      contiguous_kernel<Functor, T, outputs><<<blocks, threads, 0, stream>>>(functor, operand, n);
      return cudaGetLastError();
    }
    Strided<operands, 25> strided;
    if (!copy_loop(loop, strided)) return cudaErrorInvalidValue;
    if (n < max_index) {
      strided_kernel<Functor, T, outputs><<<blocks, threads, 0, stream>>>(functor, operand, strided, uint32_t(n));
    } else {
      strided_kernel<Functor, T, outputs><<<blocks, threads, 0, stream>>>(functor, operand, strided, n);
    }
    return cudaGetLastError();
  }

  template <class Functor, int inputs, Dtype dtype>
  static constexpr Kernel kernel() {
    using T = storage_t<dtype, __half, __nv_bfloat16>;
    return {inputs, output_count<Functor, number_t<T>, inputs>, dtype, run<Functor, T, inputs>};
  }
};

}  // namespace torchad_ext
