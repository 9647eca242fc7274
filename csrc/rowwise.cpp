// The operator that runs kernels of rows on the CPU: it allocates the outputs and divides the rows among threads.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "huge_pages.h"
#include "row_operator.h"

namespace torchad_ext {
namespace {

constexpr int64_t elements_a_task = 32768;  // worth waking a thread for
constexpr int64_t most_tasks = 64;          // of a sum over all rows, each has memory for it

// An operand of a kernel of rows in memory: [rows, n], [rows, 1] or [n].
struct Operand {
  int dims;
  const int64_t* sizes;
  const int64_t* strides;
};

// Merges all dimensions but the last into rows. False if they do not merge.
bool merges(const Operand& x, int64_t& row_stride) {
  row_stride = 0;
  int64_t merged = 1;
  for (int d = x.dims - 2; d >= 0; --d) {
    if (x.sizes[d] == 1) continue;
    if (merged == 1) {
      row_stride = x.strides[d];
    } else if (x.strides[d] != row_stride * merged) {
      return false;
    }
    merged *= x.sizes[d];
  }
  return true;
}

// Copies x so that its rows are contiguous, in blocks that stay in the first cache: x is usually a transposed tensor.
template <class T>
void copy_rows(const Operand& x, int64_t elements, const void* from_, void* to_) {
  constexpr int64_t block = 16;
  const int dims = x.dims;
  const int64_t *sizes = x.sizes, *strides = x.strides;
  const int64_t length = sizes[dims - 1], step = strides[dims - 1];
  const int64_t rows = dims > 1 ? sizes[dims - 2] : 1, row_stride = dims > 1 ? strides[dims - 2] : 0;
  const int64_t blocks = (rows + block - 1) / block, tasks = blocks * (elements / (rows * length));
  const T* const data = static_cast<const T*>(from_);
  T* const to = static_cast<T*>(to_);
  const int64_t least = std::max<int64_t>(1, elements_a_task / (block * length));
  torch::stable::parallel_for(0, tasks, least, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * block, last = std::min(rows, first + block);
      int64_t matrix = task / blocks;
      T* const result = to + matrix * rows * length;
      const T* from = data;
      for (int d = dims - 3; d >= 0; --d) {
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

using Bytes = std::unique_ptr<std::byte[]>;

Bytes in_rows(const Operand& x, int64_t elements, int64_t bytes_each, const void* data) {
  const int64_t bytes = elements * bytes_each;
  Bytes copy(new (std::nothrow) std::byte[bytes]);
  STD_TORCH_CHECK(copy, "torchad_ext: no memory for ", bytes, " bytes");
  switch (bytes_each) {
    case 2:
      copy_rows<uint16_t>(x, elements, data, copy.get());
      break;
    case 4:
      copy_rows<uint32_t>(x, elements, data, copy.get());
      break;
    default:
      copy_rows<uint64_t>(x, elements, data, copy.get());
  }
  return copy;
}

// Runs a kernel of rows, as a RunKernel. Outputs are contiguous; the last of the numbers is the length of a row.
void run_rows(const Kernel& kernel_, int dims, const int64_t* shape, const int64_t* const* given, void* const* data_,
              const double* scalars, int) {
  const auto& kernel = static_cast<const RowKernel&>(kernel_);
  const int operands = kernel.outputs + kernel.inputs;
  const int64_t length = shape[dims - 1];
  STD_TORCH_CHECK((length <= longest_short_row) == kernel.is_short, "torchad_ext: a kernel of ",
                  kernel.is_short ? "short" : "long", " rows was given rows of ", length, " elements");
  int64_t rows = 1;
  for (int d = 0; d + 1 < dims; ++d) rows *= shape[d];
  std::vector<void*> data(data_, data_ + operands);
  std::vector<int64_t> row_strides(operands), steps(operands, 1);
  std::vector<const int64_t*> strides(operands);
  std::vector<int> columns;
  std::vector<Bytes> copies;
  for (int k = 0; k < kernel.outputs; ++k) {
    row_strides[k] = kernel.kinds[k] == Kind::element ? length : kernel.kinds[k] == Kind::row;
    if (kernel.kinds[k] == Kind::column) columns.push_back(k);
  }
  for (int k = kernel.outputs; k < operands; ++k) {
    const Kind kind = kernel.kinds[k];
    const Operand x = kind == Kind::column ? Operand{1, &length, given[k]} : Operand{dims, shape, given[k]};
    const int64_t step = x.strides[x.dims - 1];
    if (kind == Kind::row || length == 1) {
      steps[k] = 0;
    } else if (step == 0 || step == 1) {
      steps[k] = step;
    } else {
      const int64_t bytes_each = size_of(kernel.dtype);
      copies.push_back(in_rows(x, kind == Kind::column ? length : rows * length, bytes_each, data[k]));
      data[k] = copies.back().get();
      row_strides[k] = kind == Kind::column ? 0 : length;
      continue;
    }
    if (!merges(x, row_strides[k])) strides[k] = x.strides;
  }

  const int64_t elements = std::max<int64_t>(1, rows * length);
  int64_t tasks = std::min(rows, std::max<int64_t>(1, elements / elements_a_task));
  if (!columns.empty()) tasks = std::min(tasks, most_tasks);
  const int64_t of_task = (rows + tasks - 1) / std::max<int64_t>(1, tasks);
  tasks = of_task > 0 ? (rows + of_task - 1) / of_task : 0;
  const int64_t of_sums = int64_t(columns.size()) * length;
  std::vector<double> sums(tasks * of_sums);
  const Rows all{length, rows, data.data(), steps.data(), row_strides.data(), dims - 1, shape, strides.data()};
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      kernel.run(all, scalars, task * of_task, std::min(rows, (task + 1) * of_task), sums.data() + task * of_sums);
    }
  };
  tasks > 1 ? torch::stable::parallel_for(0, tasks, 1, run) : run(0, tasks);
  for (size_t c = 0; c < columns.size(); ++c) {
    kernel.store_sum(sums.data() + c * length, tasks, of_sums, length, data[columns[c]]);
  }
}

struct Cpu {
  static void prepare(const Tensor& output) {
    advise_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  }

  static void run(const RowKernel& kernel, int dims, const int64_t* shape, const int64_t* const* strides,
                  void* const* data, const double* scalars, const Tensor&) {
    run_rows(kernel, dims, shape, strides, data, scalars, -1);
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  m.def("rowwise(int kernel, Tensor[] inputs, float[] scalars, int[] shape) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) { torchad_ext::Rowwise<torchad_ext::Cpu>::implement(m); }

extern "C" void torchad_ext_run_rowwise(const torchad_ext::Kernel& kernel, int dims, const int64_t* sizes,
                                        const int64_t* const* strides, void* const* data, const double* scalars,
                                        int device) {
  torchad_ext::run_rows(kernel, dims, sizes, strides, data, scalars, device);
}
