// The quadratic form on the CPU by PyTorch's matrix products, where one A serves many vectors.
#pragma once

#include <algorithm>
#include <optional>

#include "matrix_rows.h"
#include "stable.h"
#include "tensor.h"

namespace torchad_ext {
namespace {

struct MatrixProducts {
  // q and s by matrix products, for more vectors than are worth reading A themselves; false for fewer.
  //
  // Which way is the quickest was measured on a core with AVX-512, 150 billion operations a second in matrix products
  // of float32, and 26 GB/s. For `count` vectors, in ns per element of A: one reading of A for each eight of them takes
  // 0.035 count; a product with A and one with its transpose take 0.013 count each, but 0.3 at the least; forming
  // A + A^T takes 0.4 to 0.8, the more the larger A, whose columns lie further apart. A product costs some microseconds
  // besides.
  static bool by_products(const Tensor& x, const Tensor& A, const Tensor& q, const Tensor* s) {
    const int64_t count = x.size(0), n = x.size(1);
    // Rows of A of one or two vector registers leave the kernel waiting: for many x, products are quicker.
    const int64_t short_rows = x.element_size() == 8 ? (s == nullptr ? 16 : 64) : (s == nullptr ? 256 : 1024);
    // A product for few vectors is the work of one thread, and may read A for each of them.
    if (n <= 8 || count <= 8) return false;
    if (n <= 16 ? count <= short_rows : count * n * n <= (s == nullptr ? 20'000 : 40'000)) return false;
    with_dtype(x, [&](auto number) {
      using T = decltype(number);
      if (s == nullptr) {
        values_by_products<T>(x, A, q);
      } else if (count < 48 + n / 64) {
        by_two_products<T>(x, A, q, *s);
      } else {
        by_product_with_sum<T>(x, A, q, *s);
      }
    });
    return true;
  }

  // s = x A + x A^T
  template <class T>
  static void by_two_products(const Tensor& x, const Tensor& A, const Tensor& q, const Tensor& s) {
    const Tensor more = empty_contiguous(x, 2, x.sizes().data());
    Tensor matrix = A;
    multiply(x, A, s);
    multiply(x, torch::stable::transpose(matrix, 0, 1), more);
    dots<T>(x, s, &more, 0.5, static_cast<T*>(q.data_ptr()));
  }

  // G = sum_b (g_b x_b + h_b) x_b^T + x_b h_b^T = L^T R with a row of L and R for each of the products.
  template <class T>
  static void sum_of_outer_products(const Tensor& x, const std::optional<Tensor>& g, const std::optional<Tensor>& h,
                                    const Tensor& G) {
    const int64_t count = x.size(0), n = x.size(1), products = h ? 2 * count : count;
    if (n == 0) return;
    const int64_t sizes[] = {products, n};
    const Tensor left = empty_contiguous(x, 2, sizes), right = h ? empty_contiguous(x, 2, sizes) : x;
    T *const L = static_cast<T*>(left.data_ptr()), *const R = static_cast<T*>(right.data_ptr());
    const T* const x_data = static_cast<const T*>(x.data_ptr());
    const T* const g_data = g ? static_cast<const T*>(g->data_ptr()) : nullptr;
    const T* const h_data = h ? static_cast<const T*>(h->data_ptr()) : nullptr;
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, worth_a_thread / n), [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        factors(x_data + row * n, g_data == nullptr ? nullptr : g_data + row,
                h_data == nullptr ? nullptr : h_data + row * n, n, L + row * n);
      }
      if (h_data == nullptr) return;
      const int64_t length = (to - from) * n;
      std::copy_n(x_data + from * n, length, L + (count + from) * n);
      std::copy_n(x_data + from * n, length, R + from * n);
      std::copy_n(h_data + from * n, length, R + (count + from) * n);
    });
    if (n <= most_summed_in_order) return sum_in_order(L, static_cast<const T*>(right.data_ptr()), products, n, G);
    Tensor rows = left;
    multiply(torch::stable::transpose(rows, 0, 1), right, G);
  }

  static constexpr int64_t most_summed_in_order = 32;

  // G = L^T R, [count, n] each: blocks of rows, added up in order. A matrix product would divide this long sum among
  // the threads that there are, and its rounding would depend on their number.
  template <class T>
  static void sum_in_order(const T* L, const T* R, int64_t count, int64_t n, const Tensor& G) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    constexpr int64_t block = 1024;
    const int64_t blocks = (count + block - 1) / block, across = (n + w - 1) / w, size = n * across * w;
    const Vectors<Number> memory(blocks * size / w);
    Number* const parts = memory.numbers();
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t from, int64_t to) {
      std::fill_n(parts + from * size, (to - from) * size, Number(0));
      for (int64_t row = from * block; row < std::min(count, to * block); ++row) {
        Number* const sum = parts + row / block * size;
        for (int64_t v = 0; v < across; ++v) {
          const T* const at = R + row * n + v * w;
          const Vector<Number> r = v * w + w <= n ? load(at) : load_some(at, n - v * w);
          for (int64_t i = 0; i < n; ++i) {
            Number* const to = sum + (i * across + v) * w;
            store(to, fma(broadcast(number(L[row * n + i])), r, load(to)));
          }
        }
      }
    });
    T* const result = static_cast<T*>(G.data_ptr());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        Number total = 0;
        for (int64_t b = 0; b < blocks; ++b) total += parts[b * size + i * across * w + j];
        write(result + i * n + j, total);
      }
    }
  }

  // u = g x + h. No product with an h or g that is none: 0 times infinity is no 0.
  template <class T>
  static void factors(const T* x, const T* g, const T* h, int64_t n, T* u) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    const Number scale = g == nullptr ? Number(0) : number(*g);
    const auto at = [&](auto x_j, auto h_j) {
      return g == nullptr ? h_j : h == nullptr ? broadcast(scale) * x_j : fma(broadcast(scale), x_j, h_j);
    };
    int64_t j = 0;
    for (; j + w <= n; j += w) store(u + j, at(load(x + j), h == nullptr ? Vector<Number>{} : load(h + j)));
    if (j == n) return;
    T rest[w];
    store(rest, at(load_some(x + j, n - j), h == nullptr ? Vector<Number>{} : load_some(h + j, n - j)));
    std::memcpy(u + j, rest, (n - j) * sizeof(T));
  }

  static constexpr int64_t panel_bytes = 1 << 20;

  // q = x . A x, for some of the vectors after others so that A x stays in the cache.
  template <class T>
  static void values_by_products(const Tensor& x, const Tensor& A, const Tensor& q) {
    const int64_t count = x.size(0), n = x.size(1);
    const int64_t some = std::min(count, std::max<int64_t>(1024, panel_bytes / int64_t(n * sizeof(T))));
    const int64_t sizes[] = {some, n};
    const Tensor y = empty_contiguous(x, 2, sizes);
    for (int64_t begin = 0; begin < count; begin += some) {
      const int64_t length = std::min(some, count - begin);
      const Tensor part = slice(x, 0, begin, length), product = slice(y, 0, 0, length);
      multiply(part, A, product);
      dots<T>(part, product, nullptr, 1, static_cast<T*>(q.data_ptr()) + begin);
    }
  }

  // s = x (A + A^T) and q = x . s / 2, a panel of columns of A + A^T after the other.
  template <class T>
  static void by_product_with_sum(const Tensor& x, const Tensor& A, const Tensor& q, const Tensor& s) {
    const int64_t n = x.size(1);
    const int64_t width = std::min(n, std::max<int64_t>(128, panel_bytes / int64_t(n * sizeof(T)) / 16 * 16));
    const int64_t sizes[] = {n, width};
    const Tensor panel = empty_contiguous(x, 2, sizes);
    for (int64_t left = 0; left < n; left += width) {
      const int64_t columns = std::min(width, n - left);
      const Tensor S = slice(panel, 1, 0, columns);
      sum_with_transpose(static_cast<const T*>(A.data_ptr()), A.stride(1) == 1 ? A.stride(0) : A.stride(1), n, left,
                         columns, static_cast<T*>(S.data_ptr()), width);
      multiply(x, S, slice(s, 1, left, columns));
    }
    dots<T>(x, s, nullptr, 0.5, static_cast<T*>(q.data_ptr()));
  }

  static Tensor slice(const Tensor& x, int64_t dim, int64_t begin, int64_t length) {
    Tensor whole = x;
    return x.size(dim) == length ? x : torch::stable::narrow(whole, dim, begin, length);
  }

  // out = a b
  static void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
    using torch::stable::detail::from;
    StableIValue stack[] = {from(a), from(b), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // owns what was returned
  }

  // Columns [left, left + columns) of A + A^T, in tiles.
  template <class T>
  static void sum_with_transpose(const T* A, int64_t row_stride, int64_t n, int64_t left, int64_t columns, T* S,
                                 int64_t width) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    const auto read = [](const T* from, int64_t count) { return count >= w ? load(from) : load_some(from, count); };
    constexpr int64_t strip = 64;  // of rows, so that a few neighbouring cache lines of each column are read together
    const int64_t grain = std::max<int64_t>(1, worth_a_thread / (strip * columns));
    torch::stable::parallel_for(0, (n + strip - 1) / strip, grain, [&](int64_t from, int64_t to) {
      for (int64_t top = from * strip; top < std::min(n, to * strip); top += strip) {
        for (int64_t j = left; j < left + columns; j += w) {
          const int64_t across = std::min<int64_t>(w, left + columns - j);
          for (int64_t i = top; i < std::min(n, top + strip); i += w) {
            Vector<Number> tile[w];
#pragma GCC unroll 16
            for (int c = 0; c < w; ++c) {
              const T* column = A + (j + c) * row_stride + i;
              __builtin_prefetch(column + w * row_stride, 0, 2);
              tile[c] = c < across ? read(column, n - i) : tile[0];
            }
            transpose(tile, std::make_integer_sequence<int, w>());
#pragma GCC unroll 16
            for (int r = 0; r < w; ++r) {
              if (r >= n - i) break;
              T* to_row = S + (i + r) * width + j - left;
              const auto sum = tile[r] + read(A + (i + r) * row_stride + j, across);
              if (across == w) {
                store(to_row, sum);
              } else {
                T rest[w];
                store(rest, sum);
                std::memcpy(to_row, rest, across * sizeof(T));
              }
            }
          }
        }
      }
    });
  }

  // q = scale x . s, row by row, after s += more, if that is given. The rows of s and `more` are contiguous.
  template <class T>
  static void dots(const Tensor& x, const Tensor& s, const Tensor* more, double scale, T* q) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    const int64_t n = x.size(1), x_strides[] = {x.stride(0), x.stride(1)}, s_stride = s.stride(0);
    const T* const x_data = static_cast<const T*>(x.data_ptr());
    T* const s_data = static_cast<T*>(s.data_ptr());
    const T* const more_data = more == nullptr ? nullptr : static_cast<const T*>(more->data_ptr());
    const int64_t grain = std::max<int64_t>(1, worth_a_thread / n);
    torch::stable::parallel_for(0, x.size(0), grain, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        const T* a = x_data + row * x_strides[0];
        T* b = s_data + row * s_stride;
        const T* c = more_data == nullptr ? nullptr : more_data + row * n;
        Vector<Number> sums[4] = {};
        int64_t j = 0;
        if (x_strides[1] == 1) {
          const auto at = [&](int64_t j, Vector<Number>& sum) {
            Vector<Number> b_j = load(b + j);
            if (c != nullptr) store(b + j, b_j += load(c + j));
            sum = fma(load(a + j), b_j, sum);
          };
          for (; j + 4 * w <= n; j += 4 * w) {
            for (int i = 0; i < 4; ++i) at(j + i * w, sums[i]);
          }
          for (; j + w <= n; j += w) at(j, sums[0]);
          if (j < n) {
            Vector<Number> b_j = load_some(b + j, n - j);
            if (c != nullptr) {
              T rest[w];
              store(rest, b_j += load_some(c + j, n - j));
              std::memcpy(b + j, rest, (n - j) * sizeof(T));
            }
            sums[1] = fma(load_some(a + j, n - j), b_j, sums[1]);
            j = n;
          }
        }
        Number total = sum<w, Number>((sums[0] + sums[1]) + (sums[2] + sums[3]));
        for (; j < n; ++j) {
          if (c != nullptr) write(b + j, number(b[j]) + number(c[j]));
          total += number(a[j * x_strides[1]]) * number(b[j]);
        }
        write(q + row, Number(scale) * total);
      }
    });
  }
};

}  // namespace
}  // namespace torchad_ext
