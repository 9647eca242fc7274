// The CUDA loop: any functor over any strided inputs.
//
// Contiguous data moves in 16-byte packs, of which a thread asks for several before it computes; an input that repeats
// one element is read once. Everything else goes element by element through the strides.
#pragma once

#include "../functor.h"
#include "../kernel.h"
#include "grid.h"
#include "number.cuh"
#include "quick.cuh"

namespace torchad_ext {

// Computes one element, which operand k has at offset[k].
template <class Functor, int outputs, int operands, class T>
__device__ __forceinline__ void one_element(const Functor& functor, const Array<T*, operands>& data,
                                            const int64_t (&offset)[operands]) {
  constexpr int inputs = operands - outputs;
  compute_t<T> x[inputs];
#pragma unroll
  for (int k = 0; k < inputs; ++k) x[k] = to_number(data.value[outputs + k][offset[outputs + k]]);
  const auto y = call(functor, x);
#pragma unroll
  for (int k = 0; k < outputs; ++k) assign(data.value[k][offset[k]], y.value[k]);
}

// Operand k at index i stands at data[k][i], or at data[k][0] where it is repeated.
template <class Functor, int outputs, int operands, class T>
__device__ __forceinline__ void contiguous_loop(const Functor& functor, const Array<T*, operands>& data,
                                                const Array<bool, operands>& repeated, int64_t n) {
  constexpr int inputs = operands - outputs;
  constexpr int together = packs_together(inputs);
  using Number = quick_t<compute_t<T>>;
  using Pack = torchad_ext::Pack<T, pack_size(sizeof(T))>;
  const int64_t packs = n / Pack::size;
  const int64_t stride = int64_t(gridDim.x) * pointwise_threads * together;

  const auto element = [&](int64_t i) {
    int64_t offset[operands];
#pragma unroll
    for (int k = 0; k < operands; ++k) offset[k] = repeated.value[k] ? 0 : i;
    one_element<Functor, outputs>(functor, data, offset);
  };

  Pack from[together][inputs];
#pragma unroll
  for (int k = 0; k < inputs; ++k) {
    if (!repeated.value[outputs + k]) continue;
    const T constant = data.value[outputs + k][0];
#pragma unroll
    for (int j = 0; j < Pack::size * together; ++j) from[j / Pack::size][k].value[j % Pack::size] = constant;
  }

  for (int64_t first = int64_t(blockIdx.x) * pointwise_threads * together + threadIdx.x; first < packs;
       first += stride) {
#pragma unroll
    for (int p = 0; p < together; ++p) {
      const int64_t i = first + p * pointwise_threads;
#pragma unroll
      for (int k = 0; k < inputs; ++k) {
        if (i < packs && !repeated.value[outputs + k]) {
          from[p][k] = reinterpret_cast<const Pack*>(data.value[outputs + k])[i];
        }
      }
    }
#pragma unroll
    for (int p = 0; p < together; ++p) {
      const int64_t i = first + p * pointwise_threads;
      if (i >= packs) break;
      Pack to[outputs];
      bool certain = true;
#pragma unroll
      for (int j = 0; j < Pack::size; ++j) {
        Number x[inputs];
#pragma unroll
        for (int k = 0; k < inputs; ++k) x[k] = Number(to_number(from[p][k].value[j]));
        const auto y = call(functor, x);
#pragma unroll
        for (int k = 0; k < outputs; ++k) {
          certain = certain && is_certain(y.value[k]);
          assign(to[k].value[j], to_number(y.value[k]));
        }
      }
      if (certain) {
#pragma unroll
        for (int k = 0; k < outputs; ++k) reinterpret_cast<Pack*>(data.value[k])[i] = to[k];
      } else {
#pragma unroll 1
        for (int j = 0; j < Pack::size; ++j) element(i * Pack::size + j);
      }
    }
  }

  // Fewer than a pack are left.
  const int64_t last = packs * Pack::size + int64_t(blockIdx.x) * pointwise_threads + threadIdx.x;
  if (last < n) element(last);
}

template <class Functor, int outputs, int operands, class T, class Loop, class Index>
__device__ __forceinline__ void strided_loop(const Functor& functor, const Array<T*, operands>& data, const Loop& loop,
                                             Index n) {
  const Index stride = Index(gridDim.x) * blockDim.x;
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    int64_t offset[operands];
    loop.offsets(i, offset);
    one_element<Functor, outputs>(functor, data, offset);
  }
}

// The arguments of the kernels of a functor of so many inputs and numbers.
template <class F, int inputs, int numbers, Dtype dtype>
struct Signature {
  using Functor = F;
  using T = storage_t<dtype>;
  static constexpr int outputs = output_count<Functor, compute_t<T>, inputs>;
  static constexpr int operands = outputs + inputs;
  using Data = Array<T*, operands>;
  using Repeated = Array<bool, operands>;
  using Numbers = Array<double, numbers == 0 ? 1 : numbers>;
  using Loop = Strided<operands>;
};

}  // namespace torchad_ext

// The kernels of a functor, to which pointwise.cpp gives these arguments.
#define TORCHAD_EXT_KERNEL(name, functor, inputs, numbers, dtype)                                                  \
  namespace torchad_ext::name {                                                                                    \
  using S = Signature<functor, inputs, numbers, Dtype::dtype>;                                                     \
  extern "C" __global__ void __launch_bounds__(pointwise_threads,                                                  \
                                               2) name##_contiguous(S::Data data, S::Repeated repeated,            \
                                                                    S::Numbers scalars, int64_t n) {               \
    contiguous_loop<S::Functor, S::outputs>(make_functor<S::Functor>(scalars.value), data, repeated, n);           \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(pointwise_threads, 2) name##_strided_32(S::Data data, S::Loop loop, \
                                                                                       S::Numbers scalars,         \
                                                                                       uint32_t n) {               \
    strided_loop<S::Functor, S::outputs>(make_functor<S::Functor>(scalars.value), data, loop, n);                  \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(pointwise_threads, 2) name##_strided_64(S::Data data, S::Loop loop, \
                                                                                       S::Numbers scalars,         \
                                                                                       int64_t n) {                \
    strided_loop<S::Functor, S::outputs>(make_functor<S::Functor>(scalars.value), data, loop, n);                  \
  }                                                                                                                \
  }
