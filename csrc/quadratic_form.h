// The operators of the quadratic form: the glue, the same for every device. The mathematics stands in
// quadratic_form_data.h.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>

#include "quadratic_form_data.h"
#include "stable.h"
#include "tensor.h"

namespace torchad_ext {

template <class Device>
struct QuadraticForm {
  template <class T>
  static void run(const Tensor& x, const Tensor& A, const Tensor& q, const Tensor* s) {
    QuadraticForms<T> forms;
    const int64_t dims = x.dim() - 1;
    forms.count = q.numel();
    forms.n = x.size(dims);
    forms.shared = true;
    forms.batch.dims = dims;
    const int64_t A_dims = A.dim() - 2;  // 0 or those of x
    for (int64_t d = 0; d < dims; ++d) {
      const int64_t stride = d < A_dims ? A.stride(d) : 0;
      forms.batch.sizes[dims - 1 - d] = x.size(d);
      forms.batch.strides[0][dims - 1 - d] = x.stride(d);
      forms.batch.strides[1][dims - 1 - d] = stride;
      forms.shared = forms.shared && (stride == 0 || x.size(d) == 1);
    }
    forms.x = static_cast<const T*>(x.data_ptr());
    forms.x_stride = x.stride(dims);
    forms.A = static_cast<const T*>(A.data_ptr());
    forms.row_stride = A.stride(A_dims + 1) == 1 ? A.stride(A_dims) : A.stride(A_dims + 1);
    forms.q = static_cast<T*>(q.data_ptr());
    forms.s = s == nullptr ? nullptr : static_cast<T*>(s->data_ptr());
    if (forms.count > 0) Device::run(forms, x);
  }

  template <class T>
  static void run(const Tensor& x, const std::optional<Tensor>& g, const std::optional<Tensor>& h, const Tensor& G) {
    OuterProducts<T> outer;
    outer.n = x.size(x.dim() - 1);
    outer.count = outer.n == 0 ? 0 : x.numel() / outer.n;
    outer.x = static_cast<const T*>(x.data_ptr());
    outer.g = g ? static_cast<const T*>(g->data_ptr()) : nullptr;
    outer.h = h ? static_cast<const T*>(h->data_ptr()) : nullptr;
    outer.G = static_cast<T*>(G.data_ptr());
    if (outer.count > 0) Device::run(outer, x);
  }

  static void dispatch(const Tensor& x, const Tensor& A, const Tensor& q, const Tensor* s) {
    const int64_t dims = x.dim() - 1;
    const int64_t A_dims = A.dim() - 2;
    STD_TORCH_CHECK(dims >= 0 && dims <= most_cuda_dims && (A_dims == 0 || A_dims == dims),
                    "torchad_ext: expected x [..., n] and A [..., n, n] or [n, n]");
    for (int64_t d = 0; d <= A_dims + 1; ++d) {
      STD_TORCH_CHECK(A.size(d) == x.size(d < A_dims ? d : dims),
                      "torchad_ext: expected x [..., n] and A [..., n, n] or [n, n]");
    }
    STD_TORCH_CHECK(A.stride(A_dims) == 1 || A.stride(A_dims + 1) == 1 || A.size(A_dims) <= 1 || A.numel() == 0,
                    "torchad_ext: the rows or the columns of A must be contiguous");
    STD_TORCH_CHECK(x.scalar_type() == A.scalar_type() && x.device() == A.device(),
                    "torchad_ext: x and A must have one dtype and one device");
    if (A_dims == 0 && dims == 1 && x.numel() > 0 && Device::by_products(x, A, q, s)) return;
    with_dtype(x, [&](auto number) { run<decltype(number)>(x, A, q, s); });
  }

  static Tensor value(const Tensor& x, const Tensor& A) {
    const Tensor q = empty_contiguous(x, x.dim() - 1, x.sizes().data());
    dispatch(x, A, q, nullptr);
    return q;
  }

  static std::tuple<Tensor, Tensor> value_and_product(const Tensor& x, const Tensor& A) {
    const Tensor q = empty_contiguous(x, x.dim() - 1, x.sizes().data());
    const Tensor s = empty_contiguous(x, x.dim(), x.sizes().data());
    dispatch(x, A, q, &s);
    return {q, s};
  }

  static Tensor outer(const Tensor& x, const std::optional<Tensor>& g, const std::optional<Tensor>& h, bool summed) {
    STD_TORCH_CHECK(x.dim() >= 1 && x.is_contiguous() && (!g || g->is_contiguous()) && (!h || h->is_contiguous()),
                    "torchad_ext: the vectors of an outer product must be contiguous");
    STD_TORCH_CHECK((!g || g->numel() * x.size(x.dim() - 1) == x.numel()) && (!h || h->numel() == x.numel()),
                    "torchad_ext: expected x [..., n], g [...] and h [..., n]");
    STD_TORCH_CHECK((!g || g->scalar_type() == x.scalar_type()) && (!h || h->scalar_type() == x.scalar_type()),
                    "torchad_ext: x, g and h must have one dtype");
    STD_TORCH_CHECK(!summed || x.dim() == 2, "torchad_ext: expected x [count, n] for a sum of outer products");
    int64_t sizes[64];
    const int64_t dims = summed ? 2 : x.dim() + 1;
    for (int64_t d = 0; d < dims; ++d) sizes[d] = x.size(summed ? 1 : std::min(d, dims - 2));
    const Tensor G = empty_contiguous(x, dims, sizes);
    Device::prepare(G);
    with_dtype(x, [&](auto number) {
      summed ? Device::template sum_of_outer_products<decltype(number)>(x, g, h, G) : run<decltype(number)>(x, g, h, G);
    });
    return G;
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("quadratic_form", TORCH_BOX(&value));
    m.impl("quadratic_form_and_product", TORCH_BOX(&value_and_product));
    m.impl("quadratic_form_outer", TORCH_BOX(&outer));
  }
};

}  // namespace torchad_ext
