// Pointwise kernels as PyTorch operators: the glue, the same for every kernel.
//
// It allocates outputs as PyTorch would, merges dimensions, and leaves the loop to the kernel that it is given, on the
// Device: Cpu (pointwise.cpp) or Cuda (cuda/pointwise.cpp). Inputs have one shape; strides are free, 0 included. An
// `out` of stride 0 along a dimension is given the sum along it.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernel.h"
#include "stable.h"
#include "strided.h"
#include "tensor.h"

namespace torchad_ext {

using torch::stable::detail::from;
using torch::stable::detail::StableLibrary;
using torch::stable::detail::to;

// A RunKernel: merges dimensions and leaves the loop to the kernel.
template <class Device>
void run_kernel(const Kernel& kernel, int dims, const int64_t* sizes, const int64_t* const* strides, void* const* data,
                const double* scalars, int device) {
  const int operands = kernel.outputs + kernel.inputs;
  // Sums have no place for each element: the loop is led by an output that has, or by one that is not there.
  const int64_t* leading = nullptr;
  bool summed = false;
  for (int k = kernel.outputs - 1; k >= 0; --k) {
    if (is_summed(dims, sizes, strides[k])) {
      summed = true;
    } else {
      STD_TORCH_CHECK(leading == nullptr || lie_alike(dims, sizes, leading, strides[k]),
                      "torchad_ext: outputs that are not summed must have the same strides");
      leading = strides[k];
    }
  }
  int64_t absent[most_dims];
  std::vector<const int64_t*> all(strides, strides + operands);
  if (summed) {
    if (leading == nullptr) {
      result_strides(kernel.inputs, dims, sizes, strides + kernel.outputs, absent);
      leading = absent;
    }
    all.insert(all.begin(), leading);
  }
  int64_t loop_sizes[most_dims];
  const std::unique_ptr<int64_t[]> loop_strides(new int64_t[all.size() * most_dims]);
  const int loop_dims = coalesce(int(all.size()), dims, sizes, all.data(), loop_sizes, loop_strides.get());
  STD_TORCH_CHECK(loop_dims <= Device::max_dims, "torchad_ext: more than ", Device::max_dims,
                  " dimensions that do not merge; call contiguous() on the inputs");
  const Loop loop{loop_dims, loop_sizes, loop_strides.get() + (summed ? most_dims : 0), data};
  if (const int64_t n = loop.elements(); n > 0) {
    summed ? Device::run_summed(kernel, loop, scalars, n, device) : Device::run(kernel, loop, scalars, n, device);
  }
}

template <class Device>
struct Pointwise {
  // Outputs come first, so that they lead the loop.
  static void run(const Kernel& kernel, const std::vector<Tensor>& tensors, const std::vector<double>& scalars) {
    const int operands = int(tensors.size());
    const Tensor& x = tensors[kernel.outputs];
    const auto sizes = x.sizes();
    std::vector<const int64_t*> strides(operands);
    std::vector<void*> data(operands);
    for (int k = 0; k < operands; ++k) {
      const auto other = tensors[k].sizes();
      STD_TORCH_CHECK(other.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), other.begin()),
                      "torchad_ext: a pointwise kernel takes tensors of one shape; expand them before the call");
      STD_TORCH_CHECK(int32_t(tensors[k].scalar_type()) == int32_t(kernel.dtype), "torchad_ext: a kernel for ",
                      torch::headeronly::toString(ScalarType(kernel.dtype)), " was given a tensor of ",
                      torch::headeronly::toString(tensors[k].scalar_type()));
      STD_TORCH_CHECK(tensors[k].device() == x.device(), "torchad_ext: a pointwise kernel takes tensors of one device");
      strides[k] = tensors[k].strides().data();
      data[k] = tensors[k].data_ptr();
      STD_TORCH_CHECK(data[k] || x.numel() == 0, "torchad_ext: a tensor of ", x.numel(),
                      " elements has no memory; was its storage resized?");
    }
    run_kernel<Device>(kernel, int(sizes.size()), sizes.data(), strides.data(), data.data(), scalars.data(),
                       x.get_device_index());
  }

  static const Kernel& kernel(StableIValue value, const std::vector<Tensor>& inputs) {
    const Kernel& kernel = *reinterpret_cast<const Kernel*>(to<int64_t>(value));
    STD_TORCH_CHECK(int64_t(inputs.size()) == kernel.inputs, "torchad_ext: a kernel of ", kernel.inputs,
                    " inputs was given ", inputs.size(), " tensors");
    STD_TORCH_CHECK(inputs[0].dim() <= most_dims, "torchad_ext: more than ", most_dims, " dimensions");
    return kernel;
  }

  // pointwise(int kernel, Tensor[] inputs, float[] scalars) -> Tensor[]
  static void boxed(StableIValue* stack, uint64_t, uint64_t) {
    const auto inputs = to<std::vector<Tensor>>(stack[1]);
    const auto scalars = to<std::vector<double>>(stack[2]);
    const Kernel& kernel = Pointwise::kernel(stack[0], inputs);
    const Tensor& x = inputs[0];
    std::vector<const int64_t*> strides;
    for (const Tensor& input : inputs) {
      STD_TORCH_CHECK(input.dim() == x.dim(), "torchad_ext: a pointwise kernel takes tensors of one shape");
      strides.push_back(input.strides().data());
    }
    int64_t result[most_dims];
    result_strides(kernel.inputs, int(x.dim()), x.sizes().data(), strides.data(), result);
    std::vector<Tensor> tensors;
    tensors.reserve(kernel.outputs + kernel.inputs);
    for (int k = 0; k < kernel.outputs; ++k) {
      tensors.push_back(empty_strided(x, x.dim(), x.sizes().data(), result));
      Device::prepare(tensors[k]);
    }
    tensors.insert(tensors.end(), inputs.begin(), inputs.end());
    run(kernel, tensors, scalars);
    tensors.resize(kernel.outputs);
    stack[0] = from(tensors);
  }

  // pointwise.out(int kernel, Tensor[] inputs, float[] scalars, *, Tensor(a!)[] out) -> ()
  static void boxed_out(StableIValue* stack, uint64_t, uint64_t) {
    const auto inputs = to<std::vector<Tensor>>(stack[1]);
    const auto scalars = to<std::vector<double>>(stack[2]);
    auto tensors = to<std::vector<Tensor>>(stack[3]);
    const Kernel& kernel = Pointwise::kernel(stack[0], inputs);
    STD_TORCH_CHECK(int64_t(tensors.size()) == kernel.outputs, "torchad_ext: a kernel of ", kernel.outputs,
                    " outputs was given ", tensors.size(), " tensors as out");
    for (const Tensor& out : tensors) {
      STD_TORCH_CHECK(is_dense_or_summed(int(out.dim()), out.sizes().data(), out.strides().data()),
                      "torchad_ext: out must be dense, without gaps, or expanded from such a tensor");
    }
    tensors.insert(tensors.end(), inputs.begin(), inputs.end());
    run(kernel, tensors, scalars);
  }

  static void implement(StableLibrary& m) {
    m.impl("pointwise", boxed);
    m.impl("pointwise.out", boxed_out);
  }
};

}  // namespace torchad_ext
