// The operator that runs kernels of rows on the CPU: it allocates the outputs and divides the rows among threads.
#include "rowwise.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "huge_pages.h"
#include "tensor.h"

namespace torchad_ext {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr int64_t elements_a_task = 32768;  // worth waking a thread for
constexpr int64_t most_tasks = 64;          // of a sum over all rows, each has memory for it

// Merges all dimensions but the last of a tensor into rows. False if they do not merge.
bool merges(const Tensor& x, int64_t& row_stride) {
  const auto sizes = x.sizes(), strides = x.strides();
  row_stride = 0;
  int64_t merged = 1;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (merged == 1) {
      row_stride = strides[d];
    } else if (strides[d] != row_stride * merged) {
      return false;
    }
    merged *= sizes[d];
  }
  return true;
}

// A copy of x whose rows are contiguous, in blocks that stay in the first cache: x is usually a transposed tensor.
template <class T>
void copy_rows(const Tensor& x, T* to) {
  constexpr int64_t block = 16;
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t dims = x.dim(), length = sizes[dims - 1], step = strides[dims - 1];
  const int64_t rows = dims > 1 ? sizes[dims - 2] : 1, row_stride = dims > 1 ? strides[dims - 2] : 0;
  const int64_t blocks = (rows + block - 1) / block, tasks = blocks * (x.numel() / (rows * length));
  const T* const data = static_cast<const T*>(x.data_ptr());
  const int64_t least = std::max<int64_t>(1, elements_a_task / (block * length));
  torch::stable::parallel_for(0, tasks, least, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * block, last = std::min(rows, first + block);
      int64_t matrix = task / blocks;
      T* const result = to + matrix * rows * length;
      const T* from = data;
      for (int64_t d = dims - 3; d >= 0; --d) {
        from += matrix % sizes[d] * strides[d];
        matrix /= sizes[d];
      }
      for (int64_t j = 0; j < length; j += block) {
        const int64_t some = std::min(block, length - j);
        for (int64_t i = first; i < last; ++i) {
          for (int64_t k = j; k < j + some; ++k) result[i * length + k] = from[i * row_stride + k * step];
        }
      }
    }
  });
}

Tensor in_rows(const Tensor& x) {
  Tensor copy = empty_contiguous(x, x.dim(), x.sizes().data());
  if (x.numel() == 0) return copy;
  switch (x.element_size()) {
    case 2:
      copy_rows(x, static_cast<uint16_t*>(copy.data_ptr()));
      break;
    case 4:
      copy_rows(x, static_cast<uint32_t*>(copy.data_ptr()));
      break;
    default:
      copy_rows(x, static_cast<uint64_t*>(copy.data_ptr()));
  }
  return copy;
}

// rowwise(int kernel, Tensor[] inputs, float[] scalars, int[] shape) -> Tensor[]
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  const RowKernel& kernel = *reinterpret_cast<const RowKernel*>(to<int64_t>(stack[0]));
  auto inputs = to<std::vector<Tensor>>(stack[1]);
  auto scalars = to<std::vector<double>>(stack[2]);
  const auto shape = to<std::vector<int64_t>>(stack[3]);
  STD_TORCH_CHECK(int64_t(inputs.size()) == kernel.inputs && !inputs.empty() && !shape.empty(),
                  "torchad_ext: a kernel of ", kernel.inputs, " inputs was given ", inputs.size(), " tensors");
  const int operands = kernel.outputs + kernel.inputs;
  const int64_t length = shape.back();
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= shape[d];
  const auto size_of = [&](Kind kind) {
    std::vector<int64_t> size = shape;
    if (kind == Kind::column) size = {length};
    if (kind == Kind::row) size.back() = 1;
    return size;
  };
  scalars.push_back(double(length));

  std::vector<Tensor> outputs;
  std::vector<void*> data(operands);
  std::vector<int64_t> row_strides(operands), steps(operands, 1);
  std::vector<const int64_t*> strides(operands);
  std::vector<int> columns;
  for (int k = 0; k < kernel.outputs; ++k) {
    const auto size = size_of(kernel.kinds[k]);
    outputs.push_back(empty_contiguous(inputs[0], int64_t(size.size()), size.data()));
    advise_huge_pages(outputs[k].data_ptr(), outputs[k].numel() * outputs[k].element_size());
    data[k] = outputs[k].data_ptr();
    row_strides[k] = kernel.kinds[k] == Kind::element ? length : kernel.kinds[k] == Kind::row;
    if (kernel.kinds[k] == Kind::column) columns.push_back(k);
  }
  for (int k = kernel.outputs; k < operands; ++k) {
    Tensor& x = inputs[k - kernel.outputs];
    const auto size = size_of(kernel.kinds[k]);
    const auto sizes = x.sizes();
    STD_TORCH_CHECK(sizes.size() == size.size() && std::equal(size.begin(), size.end(), sizes.begin()),
                    "torchad_ext: an operand of a kernel of rows has a wrong shape");
    STD_TORCH_CHECK(int32_t(x.scalar_type()) == int32_t(kernel.dtype), "torchad_ext: a kernel for ",
                    torch::headeronly::toString(ScalarType(kernel.dtype)), " was given a tensor of ",
                    torch::headeronly::toString(x.scalar_type()));
    const bool is_one = kernel.kinds[k] == Kind::row || length == 1;
    if (!is_one && x.strides()[x.dim() - 1] != 0 && x.strides()[x.dim() - 1] != 1) x = in_rows(x);
    steps[k] = is_one ? 0 : x.strides()[x.dim() - 1];
    if (!merges(x, row_strides[k])) strides[k] = x.strides().data();
    data[k] = x.data_ptr();
  }

  const int64_t elements = std::max<int64_t>(1, rows * length);
  int64_t tasks = std::min(rows, std::max<int64_t>(1, elements / elements_a_task));
  if (!columns.empty()) tasks = std::min(tasks, most_tasks);
  const int64_t of_task = (rows + tasks - 1) / std::max<int64_t>(1, tasks);
  tasks = (rows + of_task - 1) / of_task;
  const int64_t of_sums = int64_t(columns.size()) * length;
  std::vector<double> sums(tasks * of_sums);
  const Rows all{length,       rows,          data.data(), steps.data(), row_strides.data(), int(shape.size()) - 1,
                 shape.data(), strides.data()};
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      kernel.run(all, scalars.data(), task * of_task, std::min(rows, (task + 1) * of_task),
                 sums.data() + task * of_sums);
    }
  });
  for (size_t c = 0; c < columns.size(); ++c) {
    kernel.store_sum(sums.data() + c * length, tasks, of_sums, length, data[columns[c]]);
  }
  stack[0] = from(outputs);
}

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  m.def("rowwise(int kernel, Tensor[] inputs, float[] scalars, int[] shape) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) { m.impl("rowwise", torchad_ext::boxed); }
