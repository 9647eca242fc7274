// Tensors through the stable ABI: new ones like a given one, and the dtypes that kernels are made for.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "stable.h"

namespace torchad_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An uninitialised tensor with the dtype and device of another.
inline Tensor empty_strided(const Tensor& like, int64_t dims, const int64_t* sizes, const int64_t* strides) {
  int32_t dtype, device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle result;
  if (aoti_torch_empty_strided(dims, sizes, strides, dtype, device_type, like.get_device_index(), &result)) {
    int64_t elements = 1;
    for (int64_t d = 0; d < dims; ++d) elements += (sizes[d] - 1) * strides[d];
    // _native/kernels.py has PyTorch say the rest, which the stable ABI does not pass on.
    STD_TORCH_CHECK(false, "torchad_ext: no memory for ", elements * int64_t(like.element_size()), " bytes");
  }
  return Tensor(result);
}

// Memory on the device of a tensor for numbers as they are computed, freed in stream order.
inline Tensor scratch(const Tensor& like, int64_t elements) {
  const int64_t stored = like.element_size(), computed = stored < 4 ? 4 : stored;
  const int64_t sizes[] = {elements * (computed / stored)};
  const int64_t strides[] = {1};
  return empty_strided(like, 1, sizes, strides);
}

// A row-major one.
inline Tensor empty_contiguous(const Tensor& like, int64_t dims, const int64_t* sizes) {
  int64_t strides[64];
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided(like, dims, sizes, strides);
}

// Calls f with a number of the tensor's dtype, as memory has it.
template <class F>
void with_dtype(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      STD_TORCH_CHECK(false, "torchad_ext: no kernel for dtype ", torch::headeronly::toString(x.scalar_type()),
                      "; there are float16, bfloat16, float32 and float64");
  }
}

}  // namespace torchad_ext
