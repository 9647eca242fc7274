// sin and its first two derivatives.
#pragma once

#include "../functor.h"

namespace torchad_ext {

// y = sin(x)
struct Sin : CorrectlyRounded {
  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(T x) const {
    return Outputs{sin(x)};
  }
};

// The vjp of sin: grad_x = grad_output cos(x)
struct SinBackward : CorrectlyRounded {
  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(T x, T grad_output) const {
    return Outputs{grad_output * cos(x)};
  }
};

// The vjp of SinBackward, with grad_grad_x the cotangent of its grad_x:
//   for x            -grad_grad_x grad_output sin(x)
//   for grad_output   grad_grad_x cos(x)
struct SinDoubleBackward : CorrectlyRounded {
  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(T x, T grad_output, T grad_grad_x) const {
    return Outputs{-(grad_grad_x * grad_output) * sin(x), grad_grad_x * cos(x)};
  }
};

}  // namespace torchad_ext
