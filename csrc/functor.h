// What a functor is: the scalar mathematics of one kernel, one element of each input in, one of each output out.
//
//   struct Product {
//     template <class T>
//     TORCHAD_EXT_FUNCTION auto operator()(T x, T y) const { return Outputs{x * y}; }
//   };
//
// T is a float, a double or a Quick on the device, a Vector on the host. Numbers that are the same for all elements
// are members, computed by a constructor that takes them as `const double* scalars`. The loops over elements are
// written once per device, in pointwise_cpu.h and cuda/pointwise.cuh.
#pragma once

#include <type_traits>
#include <utility>

#include "scalar.h"

namespace torchad_ext {

// The base of a functor whose float16 results on the CPU are the exact ones rounded once, at some cost. Without it they
// are float results rounded again.
struct CorrectlyRounded {};
template <class Functor>
constexpr bool rounds_correctly = std::is_base_of_v<CorrectlyRounded, Functor>;

template <class T, int n>
struct Outputs {
  T value[n];
  static constexpr int count = n;
};
template <class T, class... Rest>
Outputs(T, Rest...) -> Outputs<T, 1 + sizeof...(Rest)>;

// What a comparison of two numbers gives.
template <class T>
using mask_t = decltype(std::declval<T>() < std::declval<T>());

template <class Functor>
TORCHAD_EXT_FUNCTION Functor make_functor(const double* scalars) {
  if constexpr (std::is_constructible_v<Functor, const double*>) {
    return Functor(scalars);
  } else {
    return Functor{};
  }
}

// Calls a functor on an array of inputs.
template <class Functor, class T, int inputs, std::size_t... i>
TORCHAD_EXT_FUNCTION auto call(const Functor& functor, const T (&x)[inputs], std::index_sequence<i...>) {
  return functor(x[i]...);
}
template <class Functor, class T, int inputs>
TORCHAD_EXT_FUNCTION auto call(const Functor& functor, const T (&x)[inputs]) {
  return call(functor, x, std::make_index_sequence<inputs>{});
}

template <class Functor, class T, int inputs>
constexpr int output_count = decltype(call(std::declval<const Functor&>(), std::declval<const T (&)[inputs]>()))::count;

}  // namespace torchad_ext
