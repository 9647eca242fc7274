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
  static constexpr int ways = 8;            // of a set of the smallest caches
  static constexpr int line_buffers = 6;    // that a core is sure to have free
  static constexpr int stage = 64;          // elements of a stream read at a time where streams crowd a set

  // An input as the inner loop reads it: element i stands at data[i * step], where step is 1, or 0 for one vector full
  // of the same number.
  template <class T>
  struct Input {
    const T* data;
    int64_t step;
  };

  template <class Functor, class T, int inputs, int outputs>
  static void one_vector(const Functor& functor, T* const (&to)[outputs], const Input<T> (&from)[inputs], int64_t i,
                         bool cached) {
    Vector<compute_t<T>> x[inputs];
    for (int k = 0; k < inputs; ++k) x[k] = load(from[k].data + i * from[k].step);
    auto y = call(functor, x);
    if constexpr (std::is_same_v<T, Half> && rounds_correctly<Functor>) {
      bool certain = true;
      for (int k = 0; k < outputs; ++k) certain = certain && rounds_as_neighbours(y.value[k]);
      if (!certain) y = rounded_to_odd(functor, x);
    }
    for (int k = 0; k < outputs; ++k) {
      cached ? store(to[k] + i, y.value[k]) : store_uncached(to[k] + i, y.value[k]);
    }
  }

  // The same computed in double and rounded to odd: that rounds to halves as the doubles would (Boldo and Melquiond,
  // Emulation of a FMA and correctly rounded sums, 2008).
  template <class Functor, int inputs>
  __attribute__((noinline)) static auto rounded_to_odd(const Functor& functor, const Float (&x)[inputs]) {
    constexpr int outputs = output_count<Functor, Float, inputs>;
    Outputs<Float, outputs> result;
    Outputs<Double, outputs> y[2];
    for (int half = 0; half < 2; ++half) {
      Double wide[inputs];
      for (int k = 0; k < inputs; ++k) wide[k] = Doubles(x[k]).half[half];
      y[half] = call(functor, wide);
    }
    for (int k = 0; k < outputs; ++k) {
      result.value[k] = Float(Doubles{round_to_odd(y[0].value[k]), round_to_odd(y[1].value[k])});
    }
    return result;
  }

  // Less than a vector.
  template <class Functor, class T, int inputs, int outputs>
  static void some(const Functor& functor, T* const (&to)[outputs], const Input<T> (&from)[inputs], int64_t i,
                   int64_t count) {
    if (count == 0) return;
    T x[inputs][lanes<T>] = {};
    T y[outputs][lanes<T>];
    Input<T> padded_from[inputs];
    T* padded_to[outputs];
    for (int k = 0; k < inputs; ++k) {
      const int64_t given = from[k].step == 0 ? lanes<T> : count;
      std::memcpy(x[k], from[k].data + i * from[k].step, given * sizeof(T));
      padded_from[k] = {x[k], 0};
    }
    for (int k = 0; k < outputs; ++k) padded_to[k] = y[k];
    one_vector(functor, padded_to, padded_from, 0, true);
    for (int k = 0; k < outputs; ++k) std::memcpy(to[k] + i, y[k], count * sizeof(T));
  }

  template <class Functor, class T, int inputs, int outputs>
  static void inner_loop(const Functor& functor, T* const (&to)[outputs], const Input<T> (&from)[inputs], int64_t n,
                         bool cached) {
    int64_t i = 0;
    if (!cached) some(functor, to, from, 0, i = std::min(n, until_aligned<T>(to[0])));
    for (; i + lanes<T> <= n; i += lanes<T>) one_vector(functor, to, from, i, cached);
    some(functor, to, from, i, n - i);
  }

  // The same with a few lines of each operand copied at a time, where a vector is less than a line: for operands whose
  // lines crowd one set of a cache, where a line would go before all of it is used, and for more uncached results than
  // the buffers of unfinished lines can hold.
  template <class Functor, class T, int inputs, int outputs>
  __attribute__((noinline)) static void staged_loop(const Functor& functor, T* const (&to)[outputs],
                                                    const Input<T> (&from)[inputs], int64_t n, bool cached) {
    constexpr int64_t line = 64 / sizeof(T);  // a copy begins in another set than its neighbour
    alignas(64) T x[inputs][stage + line], y[outputs][stage + line];
    Input<T> copied[inputs];
    T* results[outputs];
    for (int k = 0; k < inputs; ++k) copied[k] = {from[k].step ? x[k] : from[k].data, from[k].step};
    for (int k = 0; k < outputs; ++k) results[k] = y[k];
    int64_t size;
    for (int64_t i = 0; i < n; i += size) {
      const int64_t ahead = until_aligned<T>(to[0] + i);
      size = std::min<int64_t>(n - i, ahead ? ahead : stage);
      for (int k = 0; k < inputs; ++k) {
        if (from[k].step) std::memcpy(x[k], from[k].data + i, size * sizeof(T));
      }
      inner_loop(functor, results, copied, size, true);
      for (int k = 0; k < outputs; ++k) {
        if (cached || size < stage || sizeof(T) == 2) {
          std::memcpy(to[k] + i, y[k], size * sizeof(T));
        } else {
          for (int j = 0; j < stage; j += lanes<T>) store_uncached(to[k] + i + j, load(y[k] + j));
        }
      }
    }
  }

  // Do lines of more operands than a set of the cache has ways fall into one set? Caches of the first level have 64
  // sets of 8 or 12 lines, so that addresses that are alike modulo 4096 share one.
  template <class T, int inputs, int outputs>
  static bool crowd_a_set(T* const (&to)[outputs], const Input<T> (&from)[inputs]) {
    uint8_t lines[64] = {};
    bool crowded = false;
    const auto count = [&](const T* data) { crowded |= ++lines[uintptr_t(data) / 64 % 64] > ways; };
    for (int k = 0; k < outputs; ++k) count(to[k]);
    for (int k = 0; k < inputs; ++k) {
      if (from[k].step) count(from[k].data);
    }
    return crowded;
  }

  // The elements before the next vector that is aligned.
  template <class T>
  static int64_t until_aligned(const void* to) {
    constexpr uintptr_t bytes = lanes<T> * sizeof(T);
    return int64_t(-reinterpret_cast<uintptr_t>(to) % bytes / sizeof(T));
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
      if (step == 0) {
        std::fill_n(to, run, *data);
      } else if (step == 1) {
        std::memcpy(to, data, run * sizeof(T));
      } else {
        for (int64_t i = 0; i < run; ++i) to[i] = data[i * step];
      }
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

  // How the elements of an input reach the inner loop: as they lie in memory, as one number for a whole run, or copied
  // one after another.
  enum class Access { direct, repeated, gathered };

  // How a loop is cut into runs of elements, and how each input is read in them.
  template <int inputs>
  struct Plan {
    Access access[inputs];
    int64_t row;          // runs end where rows of so many elements do
    int64_t longest_run;  // in elements
    bool cached;          // are the results to stay in the caches?
  };

  template <class T, int outputs, int inputs>
  static Plan<inputs> plan(const Loop& loop, int64_t elements) {
    constexpr int64_t unbounded = INT64_MAX;
    const int64_t row = loop.dims > 0 ? loop.sizes[0] : 1;
    const bool by_rows = loop.dims < 2 || row >= shortest_row;
    Plan<inputs> plan{{}, by_rows ? row : unbounded, unbounded, true};
    int streams = outputs;  // of as much memory as an output
    for (int k = 0; k < inputs; ++k) {
      const int64_t step = loop.dims > 0 ? loop.stride(outputs + k, 0) : 0;
      const bool repeated = loop.repeated(outputs + k) || (by_rows && step == 0);
      const bool direct = (by_rows && step == 1) || loop.contiguous(outputs + k);
      plan.access[k] = repeated ? Access::repeated : direct ? Access::direct : Access::gathered;
      if (plan.access[k] == Access::gathered) plan.longest_run = block;
      streams += !repeated;
    }
    plan.cached = elements * streams * int64_t(sizeof(T)) < most_cached_bytes;
    for (int k = 1; k < outputs; ++k) {
      plan.cached = plan.cached || until_aligned<T>(loop.data[k]) != until_aligned<T>(loop.data[0]);
    }
    return plan;
  }

  // Elements [begin, begin + n) of an operand, in the order of the loop; copies of them are made in `scratch`.
  template <class T>
  static Input<T> read(const Loop& loop, int operand, Access access, int64_t begin, int64_t n, T* scratch) {
    if (access == Access::gathered) {
      gather(loop, operand, begin, n, scratch);
      return {scratch, 1};
    }
    const T* data = static_cast<const T*>(loop.data[operand]) + loop.offset(operand, begin);
    if (access == Access::direct) return {data, 1};
    std::fill_n(scratch, lanes<T>, *data);
    return {scratch, 0};
  }

  template <class Functor, class T, int inputs>
  static void run(const Loop& loop, const double* scalars, int64_t begin, int64_t end) {
    constexpr int outputs = output_count<Functor, Vector<compute_t<T>>, inputs>;
    const auto functor = make_functor<Functor>(scalars);
    const Plan<inputs> plan = Cpu::plan<T, outputs, inputs>(loop, end - begin);
    T scratch[inputs][block];
    int64_t size;
    for (int64_t at = begin; at < end; at += size) {
      size = std::min({end - at, plan.row - at % plan.row, plan.longest_run});
      Input<T> from[inputs];
      for (int k = 0; k < inputs; ++k) from[k] = read(loop, outputs + k, plan.access[k], at, size, scratch[k]);
      // Outputs are dense and lead the loop, so they are contiguous in its order.
      T* to[outputs];
      for (int k = 0; k < outputs; ++k) to[k] = static_cast<T*>(loop.data[k]) + at;
      if constexpr (lanes<T> * sizeof(T) < 64 && inputs + outputs > ways) {
        if (size >= stage && ((!plan.cached && outputs > line_buffers) || crowd_a_set(to, from))) {
          staged_loop(functor, to, from, size, plan.cached);
          continue;
        }
      }
      inner_loop(functor, to, from, size, plan.cached);
    }
    if (!plan.cached) store_fence();
  }

  template <class Functor, int inputs, Dtype dtype>
  static constexpr CpuKernel kernel(const char* name) {
    using T = storage_t<dtype>;
    constexpr int outputs = output_count<Functor, Vector<compute_t<T>>, inputs>;
    return {{inputs, outputs, dtype, name}, run<Functor, T, inputs>};
  }
};

}  // namespace torchad_ext

// Exports a functor of so many inputs as a CpuKernel.
#define TORCHAD_EXT_KERNEL(name, Functor, inputs, numbers, dtype)                                                     \
  extern "C" {                                                                                                        \
  extern const torchad_ext::CpuKernel name;                                                                           \
  const torchad_ext::CpuKernel name = torchad_ext::Cpu::kernel<Functor, inputs, torchad_ext::Dtype::dtype>(#Functor); \
  }
