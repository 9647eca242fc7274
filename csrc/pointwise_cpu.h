// The CPU loop: any functor over any strided inputs, a vector of elements at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "functor.h"
#include "kernel.h"

namespace torchad_ext {

struct Cpu {
  static constexpr int block = 512;  // elements gathered at a time

  // An input as the inner loop reads it: element i stands at data[i * step], where step is 1, or 0 for one vector full
  // of the same number.
  template <class T>
  struct Input {
    const T* data;
    int64_t step;
  };

  template <class Functor, class T, int inputs, int outputs>
  static void one_vector(const Functor& functor, T* const (&to)[outputs], const Input<T> (&from)[inputs], int64_t i) {
    Vector<compute_t<T>> x[inputs];
    for (int k = 0; k < inputs; ++k) x[k] = load(from[k].data + i * from[k].step);
    const auto y = call(functor, x);
    for (int k = 0; k < outputs; ++k) store(to[k] + i, y.value[k]);
  }

  template <class Functor, class T, int inputs, int outputs>
  static void inner_loop(const Functor& functor, T* const (&to)[outputs], const Input<T> (&from)[inputs], int64_t n) {
    int64_t i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>) one_vector(functor, to, from, i);
    const int64_t rest = n - i;
    if (rest == 0) return;
    T x[inputs][lanes<T>] = {};
    T y[outputs][lanes<T>];
    Input<T> last_from[inputs];
    T* last_to[outputs];
    for (int k = 0; k < inputs; ++k) {
      const int64_t count = from[k].step == 0 ? lanes<T> : rest;
      std::memcpy(x[k], from[k].data + i * from[k].step, count * sizeof(T));
      last_from[k] = {x[k], 0};
    }
    for (int k = 0; k < outputs; ++k) last_to[k] = y[k];
    one_vector(functor, last_to, last_from, 0);
    for (int k = 0; k < outputs; ++k) std::memcpy(to[k] + i, y[k], rest * sizeof(T));
  }

  // Copies elements [begin, begin + n) of an operand, in the order of the loop.
  template <class T>
  static void gather(const Loop& loop, int operand, int64_t begin, int64_t n, T* to) {
    const T* data = static_cast<const T*>(loop.data[operand]);
    const int64_t step = loop.stride(operand, 0);
    int64_t position[most_dims];
    for (int d = 0; d < loop.dims; ++d) {
      position[d] = begin % loop.sizes[d];
      begin /= loop.sizes[d];
      data += position[d] * loop.stride(operand, d);
    }
    while (true) {
      const int64_t run = std::min(n, loop.sizes[0] - position[0]);
      for (int64_t i = 0; i < run; ++i) to[i] = data[i * step];
      to += run;
      n -= run;
      if (n == 0) return;
      data -= position[0] * step;
      position[0] = 0;
      for (int d = 1; d < loop.dims; ++d) {
        data += loop.stride(operand, d);
        if (++position[d] < loop.sizes[d]) break;
        data -= position[d] * loop.stride(operand, d);
        position[d] = 0;
      }
    }
  }

  template <class Functor, class T, int inputs>
  static int32_t run(const Loop& loop, const double* scalars, int64_t begin, int64_t end, void*) {
    constexpr int outputs = output_count<Functor, Vector<compute_t<T>>, inputs>;
    const auto functor = make_functor<Functor>(scalars);
    // Outputs are dense and lead the loop, so they are contiguous in its order.
    T* result[outputs];
    for (int k = 0; k < outputs; ++k) result[k] = static_cast<T*>(loop.data[k]);
    Input<T> input[inputs];
    T repeated[inputs][lanes<T>];
    bool gathered[inputs];
    bool any_gathered = false;
    for (int k = 0; k < inputs; ++k) {
      input[k] = {static_cast<const T*>(loop.data[outputs + k]), 1};
      gathered[k] = false;
      if (loop.repeated(outputs + k)) {
        std::fill_n(repeated[k], lanes<T>, *input[k].data);
        input[k] = {repeated[k], 0};
      } else if (!loop.contiguous(outputs + k)) {
        gathered[k] = any_gathered = true;
      }
    }
    const int64_t step = any_gathered ? block : end - begin;
    T scratch[inputs][block];
    for (int64_t at = begin; at < end; at += step) {
      const int64_t size = std::min(step, end - at);
      Input<T> from[inputs];
      T* to[outputs];
      for (int k = 0; k < inputs; ++k) {
        from[k] = {input[k].data + at * input[k].step, input[k].step};
        if (!gathered[k]) continue;
        gather(loop, outputs + k, at, size, scratch[k]);
        from[k].data = scratch[k];
      }
      for (int k = 0; k < outputs; ++k) to[k] = result[k] + at;
      inner_loop(functor, to, from, size);
    }
    return 0;
  }

  template <class Functor, int inputs, Dtype dtype>
  static constexpr Kernel kernel() {
    using T = storage_t<dtype, Half, BFloat16>;
    constexpr int outputs = output_count<Functor, Vector<compute_t<T>>, inputs>;
    return {inputs, outputs, dtype, run<Functor, T, inputs>};
  }
};

}  // namespace torchad_ext
