// The quadratic form on the CPU. Threads share out the problems of a batch, or blocks of rows of a large one; the
// blocks depend on n alone, so the result does not depend on the number of threads.
#include "quadratic_form.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>

#include "huge_pages.h"
#include "simd.h"

namespace torchad_ext {
namespace {

// The sum of all lanes, by halves.
template <int n, class T>
T sum(typename VectorOf<T, n>::type v) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    typename VectorOf<T, n / 2>::type half[2];
    std::memcpy(half, &v, sizeof v);
    return sum<n / 2, T>(half[0] + half[1]);
  }
}

#if defined(__clang__) || __GNUC__ >= 12
// Of each run of 2 h lanes the halves are added: lanes of v[i] in the first half of the result, of v[i + h] after them.
template <int h, int n, class V, int... lane>
void fold(V (&v)[n], std::integer_sequence<int, lane...> lanes) {
  for (int i = 0; i < h; ++i) {
    v[i] = __builtin_shufflevector(v[i], v[i + h], (lane % (2 * h) < h ? lane : n + lane - h)...) +
           __builtin_shufflevector(v[i], v[i + h], (lane % (2 * h) < h ? lane + h : n + lane)...);
  }
  if constexpr (h > 1) fold<h / 2>(v, lanes);
}
#endif

// Lane j of v[i] becomes lane i of v[j].
template <int n, class V, int... lane>
void transpose(V (&v)[n], std::integer_sequence<int, lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
  const auto step = [&](auto half) {
    constexpr int h = half;
    for (int i = 0; i < n; ++i) {
      if (i & h) continue;
      const V low = v[i], high = v[i + h];
      v[i] = __builtin_shufflevector(low, high, (lane & h ? n + lane - h : lane)...);
      v[i + h] = __builtin_shufflevector(low, high, (lane & h ? n + lane : lane + h)...);
    }
  };
  if constexpr (n > 8) step(std::integral_constant<int, 8>());
  if constexpr (n > 4) step(std::integral_constant<int, 4>());
  if constexpr (n > 2) step(std::integral_constant<int, 2>());
  step(std::integral_constant<int, 1>());
#else
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < i; ++j) {
      const auto lower = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = lower;
    }
  }
#endif
}

// The vector whose lane i is the sum of the lanes of v[i].
template <class T, int n, class V>
V sums(V (&v)[n]) {
#if defined(__clang__) || __GNUC__ >= 12
  fold<n / 2>(v, std::make_integer_sequence<int, n>());
  return v[0];
#else
  V result;
  for (int i = 0; i < n; ++i) result[i] = sum<n, T>(v[i]);
  return result;
#endif
}

// The sum of the lanes of each of several vectors.
template <int w, int count, class V, class Number>
void sums_of(V (&v)[count], Number (&total)[count]) {
  if constexpr (w > 1 && count % w == 0) {
    for (int i = 0; i < count; i += w) store(total + i, sums<Number>(*reinterpret_cast<V(*)[w]>(v + i)));
  } else {
    for (int i = 0; i < count; ++i) total[i] = sum<w, Number>(v[i]);
  }
}

// Memory for whole vectors, aligned to them.
template <class Number>
class Vectors {
 public:
  explicit Vectors(int64_t count) : memory_(new Whole[count]) {}
  Number* numbers() const { return memory_[0].lane; }

 private:
  struct alignas(vector_bytes) Whole {
    Number lane[lanes<Number>];
  };
  const std::unique_ptr<Whole[]> memory_;
};

// Vectors x that share a reading of A; registers hold as many sums for each of its rows.
constexpr int most_together = vector_bytes == 64 ? 8 : 4;

// Bytes of x and s that stay in the first-level cache beside the rows of A.
constexpr int64_t cached_columns = 32 << 10;

// A few rows of a matrix for k vectors: adds their part of A^T x to s over columns [left, right), and theirs of A x to
// y [rows, k]. x and s are [columns / w, k, w], `weight` is x at the first of the rows.
template <bool product, int together, int k, class T, class Number>
void few_rows(const T* A, int64_t row_stride, int64_t left, int64_t right, const Number* x, const Number* weight,
              Number* s, Number* y) {
  constexpr int w = lanes<T>;
  Vector<Number> sums_y[together * k] = {};
  const auto columns = [&](int64_t j, auto load_from) {
    const Number* x_j = x + j * k;
    Number* s_j = s + j * k;
    Vector<Number> a[together];
#pragma GCC unroll 4
    for (int r = 0; r < together; ++r) {
      a[r] = load_from(A + r * row_stride + j);
      if (k > 1) __builtin_prefetch(A + (together + r) * row_stride + j);
    }
#pragma GCC unroll 8
    for (int b = 0; b < k; ++b) {
      const Vector<Number> x_b = load(x_j + b * w);
      Vector<Number> s_b{};
      if (product) s_b = load(s_j + b * w);
#pragma GCC unroll 4
      for (int r = 0; r < together; ++r) {
        sums_y[r * k + b] = fma(a[r], x_b, sums_y[r * k + b]);
        if (product) s_b = fma(a[r], broadcast(weight[b * w + r]), s_b);
      }
      if (product) store(s_j + b * w, s_b);
    }
  };
  int64_t j = left;
  for (; j + w <= right; j += w) columns(j, [](const T* from) { return load(from); });
  if (j < right) columns(j, [&](const T* from) { return load_some(from, right - j); });
  Number total[together * k];
  sums_of<w>(sums_y, total);
  for (int i = 0; i < together * k; ++i) y[i] += total[i];
}

// Rows [begin, end) of a matrix for k vectors: adds A x to y [rows, k] and A^T x to s. x and s are [n / w, k, w], the
// last vector padded, that of x with zeros. `begin` is a multiple of 4.
template <bool product, int k, class T, class Number = compute_t<T>>
void rows(const T* A, int64_t row_stride, int64_t n, int64_t begin, int64_t end, const Number* x, Number* s,
          Number* y) {
  constexpr int together = std::max(2, std::min(4, 2 * most_together / k));
  constexpr int w = lanes<T>;
  constexpr int64_t width = cached_columns / ((1 + product) * k * sizeof(Number)) / w * w;
  for (int64_t left = 0; left < n; left += width) {
    const auto at = [&](auto few, int64_t i) {
      few_rows<product, few, k>(A + i * row_stride, row_stride, left, std::min(n, left + width), x,
                                x + i / w * k * w + i % w, s, y + (i - begin) * k);
    };
    int64_t i = begin;
    for (; i + together <= end; i += together) at(std::integral_constant<int, together>(), i);
    for (; i < end; ++i) at(std::integral_constant<int, 1>(), i);
  }
}

template <class T>
compute_t<T> number(T x) {
  return load_some(&x, 1)[0];
}
inline float number(float x) { return x; }
inline double number(double x) { return x; }

template <class T>
void write(T* to, compute_t<T> value) {
  T padded[lanes<T>];
  store(padded, broadcast(value));
  *to = padded[0];
}
inline void write(float* to, float value) { *to = value; }
inline void write(double* to, double value) { *to = value; }

// Are n numbers a vector that the machine has, or part of one?
template <int n, class T>
constexpr bool is_vector = std::is_floating_point_v<T> && n >= 4 && (n & (n - 1)) == 0 && n * sizeof(T) <= vector_bytes;

// n numbers in registers.
template <int n, class T>
using Row = std::conditional_t<is_vector<n, T>, typename VectorOf<compute_t<T>, is_vector<n, T> ? n : 1>::type,
                               std::array<compute_t<T>, n>>;

template <int n, class T>
Row<n, T> read_row(const T* from, int64_t stride) {
  Row<n, T> row;
  if (is_vector<n, T> && stride == 1) {
    std::memcpy(&row, from, sizeof row);
  } else {
    for (int j = 0; j < n; ++j) row[j] = number(from[j * stride]);
  }
  return row;
}

template <int n, class T>
void write_row(const Row<n, T>& row, T* to) {
  if constexpr (is_vector<n, T>) {
    std::memcpy(to, &row, sizeof row);
  } else {
    for (int j = 0; j < n; ++j) write(to + j, row[j]);
  }
}

// a b + c
template <int n, class Number, class R>
R multiply_add(Number a, const R& b, R c) {
  if constexpr (std::is_class_v<R>) {
    for (int j = 0; j < n; ++j) c[j] = std::fma(a, b[j], c[j]);
    return c;
  } else {
    return fma(a - R{}, b, c);
  }
}

// Calls f with n as a constant if it is at most 8, or a vector: loops are unrolled for it. Not for halves, which would
// double the time to compile.
template <class T, int most = std::is_floating_point_v<T> ? 16 : 0, class F>
bool with_constant(int64_t n, F f) {
  if constexpr (most > 8 && !is_vector<most, T>) {
    return with_constant<T, most - 1>(n, f);
  } else if constexpr (most > 0) {
    if (n == most) return f(std::integral_constant<int, most>{}), true;
    return with_constant<T, most - 1>(n, f);
  }
  return false;
}

struct QuadraticFormCpu {
  static void prepare(const Tensor& output) {
    advise_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  }

  static constexpr int64_t worth_a_thread = 1 << 14;  // elements of A or G

  // Short vectors: a problem at a time, in registers.
  template <int n, class T>
  static void run_unrolled(const OuterProducts<T>& outer) {
    torch::stable::parallel_for(0, outer.count, worth_a_thread / (n * n), [&](int64_t from, int64_t to) {
      for (int64_t problem = from; problem < to; ++problem) {
        const Row<n, T> x = read_row<n>(outer.x + problem * n, 1);
        // u = g x + h. No product with an h or g that is none: 0 times infinity is no 0.
        Row<n, T> h{};
        if (outer.h != nullptr) h = read_row<n>(outer.h + problem * n, 1);
        Row<n, T> u = h;
        if (outer.g != nullptr) u = multiply_add<n>(number(outer.g[problem]), x, h);
        for (int i = 0; i < n; ++i) {
          Row<n, T> row{};
          if (outer.h != nullptr) row = multiply_add<n>(x[i], h, row);
          write_row<n>(multiply_add<n>(u[i], x, row), outer.G + (problem * n + i) * n);
        }
      }
    });
  }

  template <bool product, int n, class T>
  static void run_unrolled(const QuadraticForms<T>& forms) {
    using Number = compute_t<T>;
    torch::stable::parallel_for(0, forms.count, worth_a_thread / (n * n), [&](int64_t from, int64_t to) {
      for (int64_t problem = from; problem < to; ++problem) {
        int64_t offset[2];
        forms.batch.offsets(problem, offset);
        const Row<n, T> x = read_row<n>(forms.x + offset[0], forms.x_stride);
        Row<n, T> Ax{}, ATx{}, products[n];
        for (int i = 0; i < n; ++i) {
          const Row<n, T> row = read_row<n>(forms.A + offset[1] + i * forms.row_stride, 1);
          ATx = multiply_add<n>(x[i], row, ATx);
          if constexpr (is_vector<n, T>) {
            products[i] = row * x;
          } else {
            for (int j = 0; j < n; ++j) Ax[i] = std::fma(row[j], x[j], Ax[i]);
          }
        }
        if constexpr (is_vector<n, T>) {
          if (product) Ax = sums<T>(products);
          write(forms.q + problem, sum<n, T>(ATx * x));
        } else {
          Number q = 0;
          for (int i = 0; i < n; ++i) q = std::fma(x[i], Ax[i], q);
          write(forms.q + problem, q);
        }
        if (product) write_row<n>(multiply_add<n>(Number(1), Ax, ATx), forms.s + problem * n);
      }
    });
  }

  template <class T>
  static void run(const OuterProducts<T>& outer, const Tensor&) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    if (with_constant<T>(outer.n, [&](auto n) { run_unrolled<n>(outer); })) return;
    const int64_t n = outer.n, whole = n / w * w;
    const int64_t grain = std::max<int64_t>(1, worth_a_thread / n);
    torch::stable::parallel_for(0, outer.count * n, grain, [&](int64_t from, int64_t to) {
      const bool cached = whole < n || (to - from) * n * int64_t(sizeof(T)) < most_cached_bytes;
      int64_t problem = from / n, i = from % n;
      for (int64_t row = from; row < to; ++row) {
        const T* x = outer.x + problem * n;
        const T* h = outer.h == nullptr ? nullptr : outer.h + problem * n;
        const Number x_i = number(x[i]);
        const Number u_i = (outer.g == nullptr ? Number(0) : number(outer.g[problem]) * x_i) +
                           (h == nullptr ? Number(0) : number(h[i]));
        T* G = outer.G + row * n;
        const auto columns = [&](Vector<Number> x_j, Vector<Number> h_j) {
          return h == nullptr ? broadcast(u_i) * x_j : fma(broadcast(u_i), x_j, broadcast(x_i) * h_j);
        };
        for (int64_t j = 0; j < whole; j += w) {
          const auto G_j = columns(load(x + j), h == nullptr ? Vector<Number>{} : load(h + j));
          cached ? store(G + j, G_j) : store_uncached(G + j, G_j);
        }
        if (whole < n) {
          T rest[w];
          const auto h_j = h == nullptr ? Vector<Number>{} : load_some(h + whole, n - whole);
          store(rest, columns(load_some(x + whole, n - whole), h_j));
          std::memcpy(G + whole, rest, (n - whole) * sizeof(T));
        }
        if (++i == n) i = 0, ++problem;
      }
      if (!cached) store_fence();
    });
  }

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
    if (n <= 8 || count <= (s == nullptr ? 1 : 8)) return false;
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
    Tensor rows = left;
    multiply(torch::stable::transpose(rows, 0, 1), right, G);
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

  template <class T>
  static void run(const QuadraticForms<T>& forms, const Tensor&) {
    forms.s != nullptr ? run<true>(forms) : run<false>(forms);
  }

  template <bool product, class T>
  static void run(const QuadraticForms<T>& forms) {
    if (forms.n == 0) {
      std::fill_n(forms.q, forms.count, T{});
      return;
    }
    if (with_constant<T>(forms.n, [&](auto n) { run_unrolled<product, n>(forms); })) return;
    if (forms.count == 1 || !forms.shared) {
      run_groups<product, 1>(forms);
    } else if (forms.count <= 2) {
      run_groups<product, 2>(forms);
    } else if (forms.count <= 4) {
      run_groups<product, 4>(forms);
    } else {
      run_groups<product, most_together>(forms);
    }
  }

  // Groups of k problems, which have one A if k > 1. Threads share out the groups, or blocks of rows of a large A.
  template <bool product, int k, class T>
  static void run_groups(const QuadraticForms<T>& forms) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    constexpr int64_t most_bytes = 256 << 10;  // of A, which stay in a cache while all groups are served
    const int64_t n = forms.n, count = forms.count, groups = (count + k - 1) / k;
    const int64_t size = (n + w - 1) / w * w * k;  // of x and s of a group, [n / w, k, w]
    const int64_t block = n * n < 4 * worth_a_thread ? n : std::max<int64_t>(64, (n + 63) / 64 * 4);
    const int64_t blocks = (n + block - 1) / block;
    const int64_t at_once = k > 1 && blocks > 1 ? groups : 1;  // groups for a block
    const int64_t some = at_once == 1 ? block : std::clamp<int64_t>(most_bytes / (n * sizeof(T)) / 4 * 4, 4, block);

    // Every block of every group has its own part of q and s, added up in order below.
    const std::unique_ptr<Number[]> q_part(new Number[groups * blocks * k]);
    const Vectors<Number> s_memory(product && blocks > 1 ? groups * blocks * size / w : 0);
    Number* const s_part = s_memory.numbers();
    const int64_t grain = std::max<int64_t>(1, 2 * worth_a_thread / (block * n * at_once * k));
    torch::stable::parallel_for(0, groups / at_once * blocks, grain, [&](int64_t from, int64_t to) {
      const Vectors<Number> memory((at_once + (product && blocks == 1)) * size / w);
      const std::unique_ptr<Number[]> y(new Number[k * some]);
      Number *const x = memory.numbers(), *const own_s = x + at_once * size;
      int64_t first = -1;  // of the groups in x
      const T* A = nullptr;
      for (int64_t task = from; task < to; ++task) {
        const int64_t begin = task % blocks * block, end = std::min(n, begin + block);
        if (first != task / blocks * at_once) {
          first = task / blocks * at_once;
          for (int64_t group = 0; group < at_once; ++group) A = read_group<k>(forms, first + group, &x[group * size]);
        }
        for (int64_t i = begin; i < end; i += some) {
          const int64_t last = std::min(end, i + some);
          for (int64_t group = 0; group < at_once; ++group) {
            const int64_t part = (first + group) * blocks + task % blocks;
            const Number* of_group = &x[group * size];
            Number* s = product && blocks > 1 ? &s_part[part * size] : own_s;
            if (i == begin) std::fill_n(&q_part[part * k], k, Number(0));
            if (i == begin && product) std::fill_n(s, size, Number(0));
            std::fill_n(y.get(), k * (last - i), Number(0));
            rows<product, k>(A, forms.row_stride, n, i, last, of_group, s, y.get());
            for (int64_t r = i; r < last; ++r) {
              for (int b = 0; b < k; ++b) {
                const int64_t at = (r / w * k + b) * w + r % w;
                q_part[part * k + b] += of_group[at] * y[(r - i) * k + b];
                if (product) s[at] += y[(r - i) * k + b];
              }
            }
            if (product && blocks == 1) write_group<k>(forms, first + group, s);
          }
        }
      }
    });
    const int64_t worth = std::max<int64_t>(1, worth_a_thread / (blocks * size));
    torch::stable::parallel_for(0, groups, worth, [&](int64_t from, int64_t to) {
      for (int64_t group = from; group < to; ++group) {
        for (int64_t b = 0; b < std::min<int64_t>(k, count - group * k); ++b) {
          Number q = 0;
          for (int64_t part = 0; part < blocks; ++part) q += q_part[(group * blocks + part) * k + b];
          write(forms.q + group * k + b, q);
        }
        if (!product || blocks == 1) continue;
        Number* total = &s_part[group * blocks * size];
        for (int64_t part = 1; part < blocks; ++part) {
          for (int64_t j = 0; j < size; ++j) total[j] += total[part * size + j];
        }
        write_group<k>(forms, group, total);
      }
    });
  }

  // Reads the vectors of a group, and zeros behind them; returns its A.
  template <int k, class T>
  static const T* read_group(const QuadraticForms<T>& forms, int64_t group, compute_t<T>* x) {
    constexpr int w = lanes<T>;
    int64_t offset[2];
    for (int b = k - 1; b >= 0; --b) {
      const int64_t problem = group * k + b;
      forms.batch.offsets(std::min(problem, forms.count - 1), offset);
      const T* from = forms.x + offset[0];
      for (int64_t j = 0; j < forms.n; j += w) {
        T run[w] = {};
        const int64_t count = problem < forms.count ? std::min<int64_t>(w, forms.n - j) : 0;
        for (int64_t i = 0; i < count; ++i) run[i] = from[(j + i) * forms.x_stride];
        store(x + j * k + b * w, load(run));
      }
    }
    return forms.A + offset[1];
  }

  template <int k, class T>
  static void write_group(const QuadraticForms<T>& forms, int64_t group, const compute_t<T>* s) {
    constexpr int w = lanes<T>;
    for (int b = 0; b < std::min<int64_t>(k, forms.count - group * k); ++b) {
      T* to = forms.s + (group * k + b) * forms.n;
      for (int64_t j = 0; j < forms.n; j += w) {
        T run[w];
        store(run, load(s + j * k + b * w));
        std::memcpy(to + j, run, std::min<int64_t>(w, forms.n - j) * sizeof(T));
      }
    }
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  m.def("quadratic_form(Tensor x, Tensor A) -> Tensor");
  m.def("quadratic_form_and_product(Tensor x, Tensor A) -> (Tensor, Tensor)");
  m.def("quadratic_form_outer(Tensor x, Tensor? g, Tensor? h, bool summed=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) {
  torchad_ext::QuadraticForm<torchad_ext::QuadraticFormCpu>::implement(m);
}
