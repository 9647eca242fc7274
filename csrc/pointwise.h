// Functors as PyTorch operators: one boxed kernel per functor and device.
//
// The kernel allocates its outputs as PyTorch would, picks the dtype, and leaves the loop to the Device: Cpu
// (pointwise_cpu.h) or Cuda (pointwise_cuda.cuh). Inputs have one shape; strides are free, 0 included.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>

#include "functor.h"
#include "ops/exp.h"
#include "ops/sin.h"
#include "strided.h"
#include "tensor.h"

namespace torchad_ext {

using torch::stable::detail::StableLibrary;

template <class T, int n>
constexpr int count(Outputs<T, n>*) {
  return n;
}

template <class Device, class Functor, int inputs>
struct Pointwise {
  using Number = typename Device::template Number<float>;
  using Result = decltype(call<Functor>(std::declval<const Number (&)[inputs]>()));
  static constexpr int outputs = count(static_cast<Result*>(nullptr));
  static constexpr int operands = outputs + inputs;
  using Loop = Strided<operands, Device::max_dims>;

  // Outputs come first, so that they lead the loop.
  static void run(const Tensor (&tensor)[operands]) {
    const Tensor& x = tensor[outputs];
    const auto sizes = x.sizes();
    const int64_t* strides[operands];
    void* data[operands];
    for (int k = 0; k < operands; ++k) {
      const auto other = tensor[k].sizes();
      STD_TORCH_CHECK(other.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), other.begin()),
                      "torchad_ext: a pointwise kernel takes tensors of one shape; expand them before the call");
      STD_TORCH_CHECK(tensor[k].scalar_type() == x.scalar_type(),
                      "torchad_ext: a pointwise kernel takes tensors of one dtype");
      STD_TORCH_CHECK(tensor[k].device() == x.device(), "torchad_ext: a pointwise kernel takes tensors of one device");
      strides[k] = tensor[k].strides().data();
      data[k] = tensor[k].data_ptr();
    }
    Loop loop;
    STD_TORCH_CHECK(coalesce(sizes.size(), sizes.data(), strides, loop), "torchad_ext: more than ", Device::max_dims,
                    " dimensions that do not merge; call contiguous() on the inputs");
    if (loop.elements() == 0) return;
    with_dtype<Device>(x,
                       [&](auto number) { Device::template run<Functor, decltype(number), outputs>(loop, data, x); });
  }

  // name(Tensor, ...) -> (Tensor, ...)
  static void boxed(StableIValue* stack, uint64_t, uint64_t) {
    Tensor tensor[operands] = {};
    for (int k = 0; k < inputs; ++k) tensor[outputs + k] = torch::stable::detail::to<Tensor>(stack[k]);
    const Tensor& x = tensor[outputs];
    int64_t strides[64];
    result_strides(x.dim(), x.sizes().data(), x.strides().data(), strides);
    for (int k = 0; k < outputs; ++k) {
      tensor[k] = empty_strided(x, x.dim(), x.sizes().data(), strides);
      Device::prepare(tensor[k]);
    }
    run(tensor);
    for (int k = 0; k < outputs; ++k) stack[k] = torch::stable::detail::from(tensor[k]);
  }

  // name.out(Tensor, ..., *, Tensor(a!) out, ...) -> ()
  static void boxed_out(StableIValue* stack, uint64_t, uint64_t) {
    Tensor tensor[operands] = {};
    for (int k = 0; k < inputs; ++k) tensor[outputs + k] = torch::stable::detail::to<Tensor>(stack[k]);
    for (int k = 0; k < outputs; ++k) {
      tensor[k] = torch::stable::detail::to<Tensor>(stack[inputs + k]);
      STD_TORCH_CHECK(is_dense(tensor[k].dim(), tensor[k].sizes().data(), tensor[k].strides().data()),
                      "torchad_ext: out must be dense, without gaps or repeated elements");
    }
    run(tensor);
  }
};

// An op of one argument with its first two derivatives. The double backward also comes with one output alone, for the
// gradients that nobody asked for.
inline void define(StableLibrary& m, const std::string& op) {
  m.def((op + "(Tensor x) -> Tensor").c_str());
  m.def((op + ".out(Tensor x, *, Tensor(a!) out) -> ()").c_str());
  m.def((op + "_backward(Tensor x, Tensor grad_output) -> Tensor").c_str());
  const std::string arguments = "(Tensor x, Tensor grad_output, Tensor grad_grad_x) -> ";
  m.def((op + "_double_backward" + arguments + "(Tensor, Tensor)").c_str());
  m.def((op + "_double_backward_x" + arguments + "Tensor").c_str());
  m.def((op + "_double_backward_grad_output" + arguments + "Tensor").c_str());
}

template <class Device, class Forward, class Backward, class DoubleBackward>
void implement(StableLibrary& m, const std::string& op) {
  m.impl(op.c_str(), Pointwise<Device, Forward, 1>::boxed);
  m.impl((op + ".out").c_str(), Pointwise<Device, Forward, 1>::boxed_out);
  m.impl((op + "_backward").c_str(), Pointwise<Device, Backward, 2>::boxed);
  m.impl((op + "_double_backward").c_str(), Pointwise<Device, DoubleBackward, 3>::boxed);
  m.impl((op + "_double_backward_x").c_str(), Pointwise<Device, Select<DoubleBackward, 0>, 3>::boxed);
  m.impl((op + "_double_backward_grad_output").c_str(), Pointwise<Device, Select<DoubleBackward, 1>, 3>::boxed);
}

template <class Device>
void implement_all(StableLibrary& m) {
  implement<Device, Sin, SinBackward, SinDoubleBackward>(m, "sin");
  implement<Device, Exp, ExpBackward, ExpDoubleBackward>(m, "exp");
}

}  // namespace torchad_ext
