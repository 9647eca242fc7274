// The operators of the quadratic form on the CPU.
#include "quadratic_form.h"

#include "huge_pages.h"
#include "matrix_products.h"
#include "quadratic_form_cpu.h"

namespace torchad_ext {
namespace {

struct QuadraticFormCpu : MatrixProducts {
  static void prepare(const Tensor& output) {
    advise_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  }

  template <class Problems>
  static void run(const Problems& problems, const Tensor&) {
    run_on_cpu(problems);
  }
};

}  // namespace

void share_out(int64_t count, int64_t grain, void (*f)(const void* closure, int64_t from, int64_t to),
               const void* closure) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t from, int64_t to) { f(closure, from, to); });
}

}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  m.def("quadratic_form(Tensor x, Tensor A) -> Tensor");
  m.def("quadratic_form_and_product(Tensor x, Tensor A) -> (Tensor, Tensor)");
  m.def("quadratic_form_outer(Tensor x, Tensor? g, Tensor? h, bool summed=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) {
  torchad_ext::QuadraticForm<torchad_ext::QuadraticFormCpu>::implement(m);
}
