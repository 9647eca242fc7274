// What a functor is: the scalar mathematics of one kernel, one element of each input in, one of each output out.
//
//   struct Product {
//     template <class T>
//     TORCHAD_EXT_FUNCTION auto operator()(T x, T y) const { return Outputs{x * y}; }
//   };
//
// T is a float or a double on the device, a Vector of either on the host. The loops over elements are written once per
// device, in pointwise_cpu.h and pointwise_cuda.cuh.
#pragma once

#include <type_traits>
#include <utility>

#include "scalar.h"

namespace torchad_ext {

template <class T, int n>
struct Outputs {
  T value[n];
};
template <class T, class... Rest>
Outputs(T, Rest...) -> Outputs<T, 1 + sizeof...(Rest)>;

// Some of a functor's outputs; the compiler drops what only the others need.
template <class Functor, int... chosen>
struct Select {
  template <class... T>
  TORCHAD_EXT_FUNCTION auto operator()(T... x) const {
    const auto all = Functor{}(x...);
    return Outputs{all.value[chosen]...};
  }
};

// Calls a functor on an array of inputs.
template <class Functor, class T, int inputs, std::size_t... i>
TORCHAD_EXT_FUNCTION auto call(const T (&x)[inputs], std::index_sequence<i...>) {
  return Functor{}(x[i]...);
}
template <class Functor, class T, int inputs>
TORCHAD_EXT_FUNCTION auto call(const T (&x)[inputs]) {
  return call<Functor>(x, std::make_index_sequence<inputs>{});
}

}  // namespace torchad_ext
