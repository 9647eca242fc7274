// The operators that run pointwise kernels: their schemas, and the CPU.
#include "pointwise.h"

#include "huge_pages.h"
#include "loops_cpu.h"

namespace torchad_ext {
namespace {

struct Cpu {
  static constexpr int max_dims = most_dims;
  static constexpr int64_t grain = 16384;  // elements worth waking a thread for

  static void prepare(const Tensor& output) {
    advise_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  }

  static void run(const Kernel& kernel, const Loop& loop, const double* scalars, int64_t n, int) {
    const auto& of_cpu = static_cast<const CpuKernel&>(kernel);
    torch::stable::parallel_for(0, n, grain,
                                [&](int64_t begin, int64_t end) { compute(of_cpu, loop, scalars, begin, end); });
  }

  static void run_summed(const Kernel& kernel, const Loop& loop, const double* scalars, int64_t, int) {
    const auto& of_cpu = static_cast<const CpuKernel&>(kernel);
    compute_sums(of_cpu, loop, scalars, [](int64_t tasks, const std::function<void(int64_t, int64_t)>& f) {
      tasks > 1 ? torch::stable::parallel_for(0, tasks, 1, f) : f(0, tasks);
    });
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  m.def("pointwise(int kernel, Tensor[] inputs, float[] scalars) -> Tensor[]");
  m.def("pointwise.out(int kernel, Tensor[] inputs, float[] scalars, *, Tensor(a!)[] out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) { torchad_ext::Pointwise<torchad_ext::Cpu>::implement(m); }

extern "C" void torchad_ext_run_cpu(const torchad_ext::Kernel& kernel, int dims, const int64_t* sizes,
                                    const int64_t* const* strides, void* const* data, const double* scalars,
                                    int device) {
  torchad_ext::run_kernel<torchad_ext::Cpu>(kernel, dims, sizes, strides, data, scalars, device);
}
