// The CPU loop: any functor over any strided inputs, a vector of elements at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "functor.h"
#include "kernel.h"

namespace torchad_ext {

struct Cpu {
  static constexpr int block = 512;         // elements gathered at a time
  static constexpr int shortest_row = 128;  // a shorter row is gathered, with its neighbours

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
    const T* data = static_cast<const T*>(loop.data[operand]) + loop.offset(operand, begin);
    const int64_t step = loop.stride(operand, 0);
    int64_t position[most_dims];
    for (int d = 0; d < loop.dims; ++d) {
      position[d] = begin % loop.sizes[d];
      begin /= loop.sizes[d];
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
    const int64_t row = loop.dims > 0 ? loop.sizes[0] : 1;
    const bool by_rows = loop.dims < 2 || row >= shortest_row;
    bool gathered[inputs];
    bool any_gathered = false;
    T scratch[inputs][block];
    Input<T> from[inputs];
    for (int k = 0; k < inputs; ++k) {
      const bool repeated = loop.repeated(outputs + k);
      const int64_t step = loop.dims > 0 ? loop.stride(outputs + k, 0) : 0;
      gathered[k] = !repeated && (!by_rows || step > 1 || step < 0);
      any_gathered = any_gathered || gathered[k];
      from[k] = {scratch[k], repeated || (by_rows && step == 0) ? 0 : 1};
    }
    int64_t size;
    for (int64_t at = begin; at < end; at += size) {
      size = end - at;
      if (by_rows) size = std::min(size, row - at % row);
      if (any_gathered) size = std::min<int64_t>(size, block);
      for (int k = 0; k < inputs; ++k) {
        if (gathered[k]) {
          gather(loop, outputs + k, at, size, scratch[k]);
          continue;
        }
        from[k].data = static_cast<const T*>(loop.data[outputs + k]) + loop.offset(outputs + k, at);
        if (from[k].step == 1) continue;
        std::fill_n(scratch[k], lanes<T>, *from[k].data);
        from[k].data = scratch[k];
      }
      // Outputs are dense and lead the loop, so they are contiguous in its order.
      T* to[outputs];
      for (int k = 0; k < outputs; ++k) to[k] = static_cast<T*>(loop.data[k]) + at;
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
