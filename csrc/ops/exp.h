// exp and its first two derivatives.
#pragma once

#include "../functor.h"

namespace torchad_ext {

// y = exp(x)
struct Exp : CorrectlyRounded {
  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(T x) const {
    return Outputs{exp(x)};
  }
};

// The vjp of exp: grad_x = grad_output exp(x)
struct ExpBackward : CorrectlyRounded {
  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(T x, T grad_output) const {
    return Outputs{grad_output * exp(x)};
  }
};

// The vjp of ExpBackward, with grad_grad_x the cotangent of its grad_x:
//   for x            grad_grad_x grad_output exp(x)
//   for grad_output  grad_grad_x exp(x)
struct ExpDoubleBackward : CorrectlyRounded {
  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(T x, T grad_output, T grad_grad_x) const {
    const T grad_grad_output = grad_grad_x * exp(x);
    return Outputs{grad_grad_output * grad_output, grad_grad_output};
  }
};

}  // namespace torchad_ext
