// The quadratic form q = x^T A x and half of all its derivatives, s = (A + A^T) x, in one reading of A.
//
// Row i of A contributes, with y_i = sum_j A_ij x_j,
//   q   += x_i y_i
//   s_i += y_i
//   s_j += x_i A_ij    for every j
// so each element of A is read once and used twice. q and s are the same for A and A^T: a transposed A is read as it
// lies.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "strided.h"
#include "tensor.h"

namespace torchad_ext {

// A batch of problems of one size; `batch` gives the offsets of x (operand 0) and A (operand 1) for each of them.
template <class T>
struct QuadraticForms {
  int64_t count;  // problems
  int64_t n;      // length of x
  Strided<2, 25> batch;
  const T* x;
  int64_t x_stride;
  const T* A;
  int64_t row_stride;  // of A, whose rows are contiguous
  T* q;                // [count]
  T* s;                // [count, n], or null when only q is wanted
};

// The pullback of (q, s) with respect to A, for cotangents g of q and h of s:
//   G = (g x + h) x^T + x h^T
template <class T>
struct OuterProducts {
  int64_t count;
  int64_t n;
  const T* x;  // [count, n]
  const T* g;  // [count], or null for 0
  const T* h;  // [count, n], or null for 0
  T* G;        // [count, n, n]
};

template <class Device>
struct QuadraticForm {
  template <class T>
  static void run(const Tensor& x, const Tensor& A, const Tensor& q, const Tensor* s) {
    QuadraticForms<T> forms;
    const int64_t dims = x.dim() - 1;
    forms.count = q.numel();
    forms.n = x.size(dims);
    forms.batch.dims = int(dims);
    for (int64_t d = 0; d < dims; ++d) {
      forms.batch.sizes[dims - 1 - d] = x.size(d);
      forms.batch.strides[0][dims - 1 - d] = x.stride(d);
      forms.batch.strides[1][dims - 1 - d] = A.stride(d);
    }
    forms.x = static_cast<const T*>(x.data_ptr());
    forms.x_stride = x.stride(dims);
    forms.A = static_cast<const T*>(A.data_ptr());
    forms.row_stride = A.stride(dims + 1) == 1 ? A.stride(dims) : A.stride(dims + 1);
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
    STD_TORCH_CHECK(dims >= 0 && dims <= 25 && A.dim() == dims + 2,
                    "torchad_ext: expected x [..., n] and A [..., n, n]");
    for (int64_t d = 0; d <= dims + 1; ++d) {
      STD_TORCH_CHECK(A.size(d) == x.size(std::min(d, dims)), "torchad_ext: expected x [..., n] and A [..., n, n]");
    }
    STD_TORCH_CHECK(A.stride(dims) == 1 || A.stride(dims + 1) == 1 || A.size(dims) <= 1 || A.numel() == 0,
                    "torchad_ext: the rows or the columns of A must be contiguous");
    STD_TORCH_CHECK(x.scalar_type() == A.scalar_type() && x.device() == A.device(),
                    "torchad_ext: x and A must have one dtype and one device");
    with_dtype<Device>(x, [&](auto number) { run<decltype(number)>(x, A, q, s); });
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

  static Tensor outer(const Tensor& x, const std::optional<Tensor>& g, const std::optional<Tensor>& h) {
    STD_TORCH_CHECK(x.dim() >= 1 && x.is_contiguous() && (!g || g->is_contiguous()) && (!h || h->is_contiguous()),
                    "torchad_ext: the vectors of an outer product must be contiguous");
    STD_TORCH_CHECK((!g || g->numel() * x.size(x.dim() - 1) == x.numel()) && (!h || h->numel() == x.numel()),
                    "torchad_ext: expected x [..., n], g [...] and h [..., n]");
    STD_TORCH_CHECK((!g || g->scalar_type() == x.scalar_type()) && (!h || h->scalar_type() == x.scalar_type()),
                    "torchad_ext: x, g and h must have one dtype");
    int64_t sizes[64];
    const int64_t dims = x.dim() + 1;
    for (int64_t d = 0; d < dims; ++d) sizes[d] = x.size(std::min(d, dims - 2));
    const Tensor G = empty_contiguous(x, dims, sizes);
    Device::prepare(G);
    with_dtype<Device>(x, [&](auto number) { run<decltype(number)>(x, g, h, G); });
    return G;
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("quadratic_form", TORCH_BOX(&value));
    m.impl("quadratic_form_and_product", TORCH_BOX(&value_and_product));
    m.impl("quadratic_form_outer", TORCH_BOX(&outer));
  }
};

}  // namespace torchad_ext
