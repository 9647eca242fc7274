// The CUDA loop: any functor over any strided inputs.
//
// Contiguous data moves in 16-byte packs, of which a thread asks for several before it computes; an input that repeats
// one element is read once. Everything else goes element by element through the strides.
#pragma once

#include "functor.h"
#include "kernel.h"
#include "number.cuh"

namespace torchad_ext {

constexpr int block_threads = 256;

// Packs of every input that a thread loads before it uses the first: enough bytes on their way to hide the latency of
// memory, few enough for the registers.
template <int inputs>
constexpr int packs_together = inputs == 1   ? 4
                               : inputs <= 3 ? 2
                                             : 1;

template <class T, int operands>
struct Operands {
  T* data[operands];
  bool repeated[operands];  // the same element at every index
};

// Operand k at index i stands at data[k][i], or at data[k][0] where it is repeated.
template <class Functor, class T, int outputs, int operands>
__global__ void __launch_bounds__(block_threads, 2)
    contiguous_kernel(Functor functor, Operands<T, operands> operand, int64_t n) {
  constexpr int inputs = operands - outputs;
  constexpr int together = packs_together<inputs>;
  using Number = number_t<T>;
  const int64_t packs = n / Pack<T>::size;
  const int64_t stride = int64_t(gridDim.x) * block_threads * together;

  Pack<T> from[together][inputs];
#pragma unroll
  for (int k = 0; k < inputs; ++k) {
    if (!operand.repeated[outputs + k]) continue;
    const T constant = operand.data[outputs + k][0];
#pragma unroll
    for (int j = 0; j < Pack<T>::size * together; ++j) from[j / Pack<T>::size][k].value[j % Pack<T>::size] = constant;
  }

  for (int64_t first = int64_t(blockIdx.x) * block_threads * together + threadIdx.x; first < packs; first += stride) {
#pragma unroll
    for (int p = 0; p < together; ++p) {
      const int64_t i = first + p * block_threads;
#pragma unroll
      for (int k = 0; k < inputs; ++k) {
        if (i < packs && !operand.repeated[outputs + k]) {
          from[p][k] = reinterpret_cast<const Pack<T>*>(operand.data[outputs + k])[i];
        }
      }
    }
#pragma unroll
    for (int p = 0; p < together; ++p) {
      const int64_t i = first + p * block_threads;
      if (i >= packs) break;
      Pack<T> to[outputs];
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) {
        Number x[inputs];
#pragma unroll
        for (int k = 0; k < inputs; ++k) x[k] = to_number(from[p][k].value[j]);
        const auto y = call(functor, x);
#pragma unroll
        for (int k = 0; k < outputs; ++k) assign(to[k].value[j], y.value[k]);
      }
#pragma unroll
      for (int k = 0; k < outputs; ++k) reinterpret_cast<Pack<T>*>(operand.data[k])[i] = to[k];
    }
  }

  // Fewer than a pack are left.
  const int64_t last = packs * Pack<T>::size + int64_t(blockIdx.x) * block_threads + threadIdx.x;
  if (last < n) {
    Number x[inputs];
#pragma unroll
    for (int k = 0; k < inputs; ++k) {
      const int64_t at = operand.repeated[outputs + k] ? 0 : last;
      x[k] = to_number(operand.data[outputs + k][at]);
    }
    const auto y = call(functor, x);
#pragma unroll
    for (int k = 0; k < outputs; ++k) assign(operand.data[k][last], y.value[k]);
  }
}

template <class Functor, class T, int outputs, int operands, class Loop, class Index>
__global__ void __launch_bounds__(block_threads, 2)
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
        contiguous = contiguous && loop.contiguous(k) && is_aligned<Pack<T>>(loop.data[k]);
      }
    }
    const int64_t of_a_block = block_threads * (contiguous ? packs_together<inputs> * Pack<T>::size : 1);
    const int64_t needed = (n + of_a_block - 1) / of_a_block;
    const int blocks = int(needed < max_blocks ? needed : max_blocks);
    if (contiguous) {
      contiguous_kernel<Functor, T, outputs><<<blocks, block_threads, 0, stream>>>(functor, operand, n);
      return cudaGetLastError();
    }
    Strided<operands, 25> strided;
    if (!copy_loop(loop, strided)) return cudaErrorInvalidValue;
    if (n < max_index) {
      strided_kernel<Functor, T, outputs><<<blocks, block_threads, 0, stream>>>(functor, operand, strided, uint32_t(n));
    } else {
      strided_kernel<Functor, T, outputs><<<blocks, block_threads, 0, stream>>>(functor, operand, strided, n);
    }
    return cudaGetLastError();
  }

  template <class Functor, int inputs, Dtype dtype>
  static constexpr Kernel kernel(const char* name) {
    using T = storage_t<dtype, Half, BFloat16>;
    return {inputs, output_count<Functor, number_t<T>, inputs>, dtype, run<Functor, T, inputs>, name};
  }
};

}  // namespace torchad_ext
