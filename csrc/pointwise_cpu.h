// The CPU loop: any functor over runs of elements (runs_cpu.h), a vector of elements at a time.
#pragma once

#include <cstring>

#include "functor.h"
#include "kernel.h"

namespace torchad_ext {

// std::min, without <algorithm>.
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Cpu {
  // A CpuInput of a type.
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
  __attribute__((noinline)) static void some(const Functor& functor, T* const (&to)[outputs],
                                             const Input<T> (&from)[inputs], int64_t i, int64_t count) {
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
    if (!cached) some(functor, to, from, 0, i = least(n, until_aligned<T>(to[0])));
    for (; i + lanes<T> <= n; i += lanes<T>) one_vector(functor, to, from, i, cached);
    some(functor, to, from, i, n - i);
  }

  template <class Functor, class T, int inputs>
  static void run(const double* scalars, bool (*next)(void* runs, CpuRun& run), void* runs) {
    constexpr int outputs = output_count<Functor, Vector<compute_t<T>>, inputs>;
    const auto functor = make_functor<Functor>(scalars);
    CpuRun run;
    while (next(runs, run)) {
      Input<T> from[inputs];
      for (int k = 0; k < inputs; ++k) from[k] = {static_cast<const T*>(run.from[k].data), run.from[k].step};
      T* to[outputs];
      for (int k = 0; k < outputs; ++k) to[k] = static_cast<T*>(run.to[k]);
      inner_loop(functor, to, from, run.size, run.cached);
    }
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
