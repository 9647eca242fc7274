// The operators of the quadratic form, for CUDA: they choose among the kernels of quadratic_form.cuh.
#include "../quadratic_form.h"

#include "../kernel.h"
#include "driver.h"
#include "grid.h"

namespace torchad_ext {
namespace {

constexpr const char* dtype_name(Half) { return "float16"; }
constexpr const char* dtype_name(BFloat16) { return "bfloat16"; }
constexpr const char* dtype_name(float) { return "float32"; }
constexpr const char* dtype_name(double) { return "float64"; }

template <class T>
std::atomic<Module*> module_of{nullptr};

// The kernel of this name for numbers of type T.
template <class T>
Entry find(const std::string& name) {
  Module* module = module_of<T>.load(std::memory_order_acquire);
  STD_TORCH_CHECK(module != nullptr, "torchad_ext: the kernels of quadratic_form for ", dtype_name(T{}),
                  " are not loaded; call torchad_ext.quadratic_form, which loads them");
  return Entry(*module, name + "_" + dtype_name(T{}));
}

template <class T>
constexpr int pack = pack_size(sizeof(T));

// At most 64 tiles lie below each other.
Tiles cut(int64_t n, int width) {
  const int64_t rows = std::max<int64_t>((n + 63) / 64, 16);
  const int64_t columns = int64_t(tile_threads) * width;
  return {rows, (n + rows - 1) / rows, (n + columns - 1) / columns};
}

struct Cuda {
  static void prepare(const Tensor&) {}

  // What is worth a matrix product does not come here.
  static bool by_products(const Tensor&, const Tensor&, const Tensor&, const Tensor*) { return false; }

  template <class T>
  static void sum_of_outer_products(const Tensor&, const std::optional<Tensor>&, const std::optional<Tensor>&,
                                    const Tensor&) {
    STD_TORCH_CHECK(false, "torchad_ext: a sum of outer products is a matrix product on CUDA");
  }

  template <class T>
  static void run(const OuterProducts<T>& outer, const Tensor& x) {
    const DeviceGuard guard(x.get_device_index());
    const bool wide = outer.n % pack<T> == 0 && is_aligned(outer.x) && is_aligned(outer.h) && is_aligned(outer.G);
    wide ? run<true>(outer, x.get_device_index()) : run<false>(outer, x.get_device_index());
  }

  template <bool wide, class T>
  static void run(const OuterProducts<T>& outer, int device) {
    static const Entry kernel_32 = find<T>(wide ? "outer_wide_32" : "outer_narrow_32");
    static const Entry kernel_64 = find<T>(wide ? "outer_wide_64" : "outer_narrow_64");
    const int64_t packs = outer.count * outer.n * outer.n / (wide ? pack<T> : 1);
    const int64_t blocks = blocks_for(packs, tile_threads);
    const auto packs_32 = uint32_t(packs);
    if (packs < max_index) {
      kernel_32.launch("quadratic_form_outer", device, blocks, tile_threads, {&outer, &packs_32});
    } else {
      kernel_64.launch("quadratic_form_outer", device, blocks, tile_threads, {&outer, &packs});
    }
  }

  template <class T>
  static void run(const QuadraticForms<T>& forms, const Tensor& x) {
    const DeviceGuard guard(x.get_device_index());
    forms.s != nullptr ? run<true>(forms, x) : run<false>(forms, x);
  }

  template <bool product, class T>
  static void run(const QuadraticForms<T>& forms, const Tensor& x) {
    const int device = x.get_device_index();
    if (forms.n <= 4) {
      run_small<4, 1, product>(forms, device);
    } else if (forms.n <= 8) {
      run_small<8, 1, product>(forms, device);
    } else if (forms.n <= 16) {
      run_small<16, 1, product>(forms, device);
    } else if (forms.n <= 32) {
      run_small<32, 1, product>(forms, device);
    } else if (forms.n <= 64) {
      run_small<32, 2, product>(forms, device);
    } else if (forms.n <= 128) {
      run_small<32, 4, product>(forms, device);
    } else {
      bool wide = forms.n % pack<T> == 0 && forms.row_stride % pack<T> == 0 && is_aligned(forms.A);
      for (int d = 0; d < forms.batch.dims; ++d) wide = wide && forms.batch.strides[1][d] % pack<T> == 0;
      wide ? run_tiles<true, product>(forms, x) : run_tiles<false, product>(forms, x);
    }
  }

  template <int group, int columns, bool product, class T>
  static void run_small(const QuadraticForms<T>& forms, int device) {
    static const Entry kernel =
        find<T>("small_" + std::to_string(group) + "_" + std::to_string(columns) + (product ? "_product" : "_value"));
    const int64_t blocks = blocks_for(forms.count, small_threads / group);
    kernel.launch("quadratic_form", device, blocks, small_threads, {&forms});
  }

  template <bool wide, bool product, class T>
  static void run_tiles(const QuadraticForms<T>& forms, const Tensor& x) {
    static const Entry tiles_kernel =
        find<T>(std::string(wide ? "tiles_wide" : "tiles_narrow") + (product ? "_product" : "_value"));
    static const Entry products_kernel = find<T>("products");
    static const Entry values_kernel = find<T>("values");
    const int device = x.get_device_index();
    const Tiles tiles = cut(forms.n, wide ? pack<T> : 1);
    const Tensor Ax_memory = scratch(x, forms.count * tiles.across * forms.n);
    const Tensor ATx_memory = scratch(x, product ? forms.count * tiles.down * forms.n : 0);
    const void *Ax = Ax_memory.data_ptr(), *ATx = ATx_memory.data_ptr();
    tiles_kernel.launch("quadratic_form", device, blocks_for(forms.count * tiles.down * tiles.across, 1), tile_threads,
                        {&forms, &tiles, &Ax, &ATx});
    if (product) {
      products_kernel.launch("quadratic_form", device, blocks_for(forms.count * forms.n, tile_threads), tile_threads,
                             {&forms, &tiles, &Ax, &ATx});
    }
    values_kernel.launch("quadratic_form", device, blocks_for(forms.count, 1), tile_threads, {&forms, &tiles, &Ax});
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) { torchad_ext::QuadraticForm<torchad_ext::Cuda>::implement(m); }

// The module with TORCHAD_EXT_QUADRATIC_FORM(dtype). Called by torchad_ext/_native/loader.py.
extern "C" void torchad_ext_cuda_quadratic_form(torchad_ext::Module* module, int dtype) {
  using torchad_ext::Dtype;
  auto& module_of = Dtype(dtype) == Dtype::float16    ? torchad_ext::module_of<torchad_ext::Half>
                    : Dtype(dtype) == Dtype::bfloat16 ? torchad_ext::module_of<torchad_ext::BFloat16>
                    : Dtype(dtype) == Dtype::float32  ? torchad_ext::module_of<float>
                                                      : torchad_ext::module_of<double>;
  module_of.store(module, std::memory_order_release);
}
