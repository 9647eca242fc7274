// The operator that runs kernels of rows, for CUDA: on PyTorch's current stream and the tensors' own device.
#include "../row_operator.h"
#include "driver.h"
#include "grid.h"

namespace torchad_ext {
namespace {

constexpr int64_t longest_of_a_warp = 1024;  // elements of a row
constexpr int most_rows_a_group = 64;        // whose sums are made in the type that is computed in

struct CudaRowKernel : RowKernel {
  const std::string symbol;
  const std::vector<Kind> all_kinds;
  const Entry rows, sums;

  CudaRowKernel(Module& module, const char* given, int inputs, int outputs, Dtype dtype, const int32_t* given_kinds)
      : RowKernel{},
        symbol(given),
        all_kinds(kinds_of(given_kinds, outputs + inputs)),
        rows(module, symbol + "_rows"),
        sums(module, symbol + "_sums") {
    this->inputs = inputs;
    this->outputs = outputs;
    this->dtype = dtype;
    name = symbol.c_str();
    kinds = all_kinds.data();
  }

  static std::vector<Kind> kinds_of(const int32_t* numbers, int count) {
    std::vector<Kind> result;
    for (int k = 0; k < count; ++k) result.push_back(Kind(numbers[k]));
    return result;
  }
};

// Sums over all rows have memory for each block: there are fewer blocks then.
RowCut cut_rows(int64_t rows, int64_t length, int pack, bool has_sums) {
  RowCut cut{length, rows, int((length + pack - 1) / pack), 1, 1};
  while (cut.lanes < warp && cut.lanes < cut.packs) cut.lanes *= 2;
  if (length > longest_of_a_warp) cut.lanes = row_threads;
  const int64_t blocks = !has_sums ? 4096 : cut.lanes <= warp ? 1024 : 256;
  const int64_t at_once = blocks * (row_threads / cut.lanes);
  cut.rows_a_group = int(std::min<int64_t>((rows + at_once - 1) / at_once, most_rows_a_group));
  return cut;
}

struct Cuda {
  static void prepare(const Tensor&) {}

  static void run(const RowKernel& given_kernel, int dims, const int64_t* shape, const int64_t* const* given,
                  void* const* data, const double* scalars, const Tensor& x) {
    const auto& kernel = static_cast<const CudaRowKernel&>(given_kernel);
    const int operands = kernel.outputs + kernel.inputs, device = x.get_device_index();
    const int64_t length = shape[dims - 1];

    // A column has the same place in all rows.
    const int64_t same[most_dims] = {};
    std::vector<const int64_t*> strides(operands);
    std::vector<int64_t> steps(operands);
    int64_t columns = 0;
    for (int k = 0; k < operands; ++k) {
      const bool is_column = kernel.kinds[k] == Kind::column;
      columns += is_column && k < kernel.outputs;
      strides[k] = is_column ? same : given[k];
      steps[k] = kernel.kinds[k] == Kind::row ? 0 : given[k][is_column ? 0 : dims - 1];
    }
    int64_t sizes[most_dims];
    const std::unique_ptr<int64_t[]> loop_strides(new int64_t[operands * most_dims]);
    const int loop_dims = coalesce(operands, dims - 1, shape, strides.data(), sizes, loop_strides.get());
    STD_TORCH_CHECK(loop_dims <= most_cuda_dims, "torchad_ext: more than ", most_cuda_dims,
                    " dimensions that do not merge; call contiguous() on the inputs");
    const Loop loop{loop_dims, sizes, loop_strides.get(), data};
    const int64_t rows = loop.elements();
    STD_TORCH_CHECK(rows > 0 && length > 0, "torchad_ext: a kernel of rows was given no elements");
    const int pack = pack_size(size_of(kernel.dtype));
    STD_TORCH_CHECK(length < max_index * pack - row_threads * pack, "torchad_ext: a row of ", length,
                    " elements is too long for a kernel");

    const std::unique_ptr<bool[]> packed(new bool[operands]);
    for (int k = 0; k < operands; ++k) {
      packed[k] = kernel.kinds[k] != Kind::row && steps[k] == 1 && length % pack == 0 && is_aligned(data[k]);
      for (int d = 0; d < loop_dims; ++d) packed[k] = packed[k] && loop.stride(k, d) % pack == 0;
    }
    const std::unique_ptr<int64_t[]> strided(new int64_t[strided_size(operands)]);
    write_strided(loop, operands, strided.get());

    const DeviceGuard guard(device);
    const RowCut cut = cut_rows(rows, length, pack, columns > 0);
    const int64_t groups = row_threads / cut.lanes, of_a_block = groups * cut.rows_a_group;
    const int64_t blocks = (rows + of_a_block - 1) / of_a_block;
    const Tensor memory = scratch(x, blocks * groups * columns * int64_t(cut.packs) * pack);
    const void* const sums = memory.data_ptr();
    kernel.rows.launch(kernel.name, device, blocks, row_threads,
                       {data, steps.data(), packed.get(), strided.get(), scalars, &cut, &sums});
    if (columns > 0) {
      const int64_t of_columns = (columns * length + warp - 1) / warp;
      kernel.sums.launch(kernel.name, device, of_columns, sum_threads, {data, &cut, &sums, &blocks});
    }
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) { torchad_ext::Rowwise<torchad_ext::Cuda>::implement(m); }

// The kernel that a file with TORCHAD_EXT_ROW_KERNEL(symbol, ...) was compiled to, of operands of these kinds, outputs
// first. Called by torchad_ext/_native/loader.py; it is never freed.
extern "C" const torchad_ext::Kernel* torchad_ext_cuda_row_kernel(torchad_ext::Module* module, const char* symbol,
                                                                  int inputs, int outputs, int dtype,
                                                                  const int32_t* kinds) {
  return new torchad_ext::CudaRowKernel(*module, symbol, inputs, outputs, torchad_ext::Dtype(dtype), kinds);
}
