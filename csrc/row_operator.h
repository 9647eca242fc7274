// The operator that runs kernels of rows, for any device: it allocates the outputs.
//
// Device: Cpu (rowwise.cpp) or Cuda (cuda/rowwise.cpp). Outputs are contiguous; the last of the numbers that a kernel
// is given is the length of a row.
#pragma once

#include <algorithm>
#include <vector>

#include "rowwise.h"
#include "stable.h"
#include "tensor.h"

namespace torchad_ext {

template <class Device>
struct Rowwise {
  // rowwise(int kernel, Tensor[] inputs, float[] scalars, int[] shape) -> Tensor[]
  static void boxed(StableIValue* stack, uint64_t, uint64_t) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    const RowKernel& kernel = *reinterpret_cast<const RowKernel*>(to<int64_t>(stack[0]));
    const auto inputs = to<std::vector<Tensor>>(stack[1]);
    auto scalars = to<std::vector<double>>(stack[2]);
    const auto shape = to<std::vector<int64_t>>(stack[3]);
    STD_TORCH_CHECK(int64_t(inputs.size()) == kernel.inputs && !inputs.empty() && !shape.empty(),
                    "torchad_ext: a kernel of ", kernel.inputs, " inputs was given ", inputs.size(), " tensors");
    STD_TORCH_CHECK(shape.size() <= most_dims, "torchad_ext: more than ", most_dims, " dimensions");
    const int64_t length = shape.back();
    const auto size_of_kind = [&](Kind kind) {
      std::vector<int64_t> size = shape;
      if (kind == Kind::column) size = {length};
      if (kind == Kind::row) size.back() = 1;
      return size;
    };
    scalars.push_back(double(length));

    std::vector<Tensor> outputs;
    std::vector<void*> data;
    std::vector<const int64_t*> strides;
    for (int k = 0; k < kernel.outputs; ++k) {
      const auto size = size_of_kind(kernel.kinds[k]);
      outputs.push_back(empty_contiguous(inputs[0], int64_t(size.size()), size.data()));
      Device::prepare(outputs[k]);
      data.push_back(outputs[k].data_ptr());
      strides.push_back(outputs[k].strides().data());
    }
    for (int k = 0; k < kernel.inputs; ++k) {
      const Tensor& x = inputs[k];
      const auto size = size_of_kind(kernel.kinds[kernel.outputs + k]);
      const auto sizes = x.sizes();
      STD_TORCH_CHECK(sizes.size() == size.size() && std::equal(size.begin(), size.end(), sizes.begin()),
                      "torchad_ext: an operand of a kernel of rows has a wrong shape");
      STD_TORCH_CHECK(int32_t(x.scalar_type()) == int32_t(kernel.dtype), "torchad_ext: a kernel for ",
                      torch::headeronly::toString(ScalarType(kernel.dtype)), " was given a tensor of ",
                      torch::headeronly::toString(x.scalar_type()));
      STD_TORCH_CHECK(x.device() == inputs[0].device(), "torchad_ext: a kernel of rows takes tensors of one device");
      data.push_back(x.data_ptr());
      STD_TORCH_CHECK(data.back() || x.numel() == 0, "torchad_ext: a tensor of ", x.numel(),
                      " elements has no memory; was its storage resized?");
      strides.push_back(x.strides().data());
    }
    Device::run(kernel, int(shape.size()), shape.data(), strides.data(), data.data(), scalars.data(), inputs[0]);
    stack[0] = from(outputs);
  }

  static void implement(torch::stable::detail::StableLibrary& m) { m.impl("rowwise", boxed); }
};

}  // namespace torchad_ext
