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
#include "vector.h"

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

// The first `count` numbers, and zeros.
template <class T>
Vector<compute_t<T>> load_some(const T* from, int64_t count) {
  T padded[lanes<T>] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

// Rows [begin, end) of one problem: returns their part of q, adds their part of A^T x to s and writes theirs of A x to
// Ax. The arrays are padded to whole vectors, x with zeros.
template <bool product, class T, class Number = compute_t<T>>
Number rows(const QuadraticForms<T>& forms, const T* A, const Number* x, Number* s, Number* Ax, int64_t begin,
            int64_t end) {
  constexpr int together = 4;  // rows, so that x and s are read once for four of them
  constexpr int w = lanes<T>;
  const int64_t whole = forms.n / w * w;
  Number q = 0;
  for (int64_t i = begin; i < end; i += together) {
    const int count = int(std::min<int64_t>(together, end - i));
    const T* row[together];
    Vector<Number> y[together], weight[together];
    for (int r = 0; r < together; ++r) {
      row[r] = A + (r < count ? i + r : i) * forms.row_stride;
      weight[r] = broadcast(r < count ? x[i + r] : Number(0));
      y[r] = Vector<Number>{};
    }
    const auto columns = [&](int64_t j, auto load_from) {
      const Vector<Number> x_j = load(x + j);
      Vector<Number> s_j = load(s + j);
      for (int r = 0; r < together; ++r) {
        if (r >= count) break;
        const Vector<Number> a = load_from(row[r] + j);
        y[r] = fma(a, x_j, y[r]);
        if (product) s_j = fma(a, weight[r], s_j);
      }
      if (product) store(s + j, s_j);
    };
    for (int64_t j = 0; j < whole; j += w) columns(j, [](const T* from) { return load(from); });
    if (whole < forms.n) {
      columns(whole, [&](const T* from) { return load_some(from, forms.n - whole); });
    }
    for (int r = 0; r < count; ++r) {
      const Number y_i = sum<w, Number>(y[r]);
      q += x[i + r] * y_i;
      Ax[i + r] = y_i;
    }
  }
  return q;
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
  using Half = torchad_ext::Half;
  using BFloat16 = torchad_ext::BFloat16;

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

  template <class T>
  static void run(const QuadraticForms<T>& forms, const Tensor&) {
    forms.s != nullptr ? run<true>(forms) : run<false>(forms);
  }

  template <bool product, class T>
  static void run(const QuadraticForms<T>& forms) {
    using Number = compute_t<T>;
    if (with_constant<T>(forms.n, [&](auto n) { run_unrolled<product, n>(forms); })) return;
    const int64_t n = forms.n;
    const int64_t padded = (n + lanes<T> - 1) / lanes<T> * lanes<T>;
    const int64_t block = n * n < 4 * worth_a_thread ? std::max<int64_t>(n, 1) : std::max<int64_t>(64, (n + 15) / 16);
    const int64_t blocks = std::max<int64_t>((n + block - 1) / block, 1);

    // Every block of every problem has its own part of q and s, added up in order below.
    const std::unique_ptr<Number[]> q_part(new Number[forms.count * blocks]);
    const std::unique_ptr<Number[]> s_part(new Number[product && blocks > 1 ? forms.count * blocks * padded : 0]);
    const int64_t grain = std::max<int64_t>(1, 2 * worth_a_thread / std::max<int64_t>(block * n, 1));
    torch::stable::parallel_for(0, forms.count * blocks, grain, [&](int64_t from, int64_t to) {
      const std::unique_ptr<Number[]> x(new Number[padded]), Ax(new Number[padded]), own_s(new Number[padded]);
      for (int64_t task = from; task < to; ++task) {
        const int64_t problem = task / blocks, begin = task % blocks * block;
        int64_t offset[2];
        forms.batch.offsets(problem, offset);
        read_padded(forms.x + offset[0], forms.x_stride, n, x.get());
        Number* s = product && blocks > 1 ? &s_part[task * padded] : own_s.get();
        std::fill_n(s, padded, Number(0));
        q_part[task] =
            rows<product>(forms, forms.A + offset[1], x.get(), s, Ax.get(), begin, std::min(n, begin + block));
        for (int64_t i = begin; product && i < std::min(n, begin + block); ++i) s[i] += Ax[i];
        if (product && blocks == 1) write_padded(s, forms.s + problem * n, n);
      }
    });
    for (int64_t problem = 0; problem < forms.count; ++problem) {
      Number q = 0;
      for (int64_t b = 0; b < blocks; ++b) q += q_part[problem * blocks + b];
      write(forms.q + problem, q);
      if (!product || blocks == 1) continue;
      Number* total = &s_part[problem * blocks * padded];
      for (int64_t b = 1; b < blocks; ++b) {
        const Number* part = total + b * padded;
        for (int64_t j = 0; j < n; ++j) total[j] += part[j];
      }
      write_padded(total, forms.s + problem * n, n);
    }
  }

  template <class T>
  static void read_padded(const T* from, int64_t stride, int64_t n, compute_t<T>* to) {
    T run[lanes<T>] = {};
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const int64_t count = std::min<int64_t>(lanes<T>, n - j);
      for (int64_t i = 0; i < count; ++i) run[i] = from[(j + i) * stride];
      for (int64_t i = count; i < lanes<T>; ++i) run[i] = T{};
      store(to + j, load(run));
    }
  }

  template <class T>
  static void write_padded(const compute_t<T>* from, T* to, int64_t n) {
    T run[lanes<T>];
    for (int64_t j = 0; j < n; j += lanes<T>) {
      store(run, load(from + j));
      std::memcpy(to + j, run, std::min<int64_t>(lanes<T>, n - j) * sizeof(T));
    }
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  m.def("quadratic_form(Tensor x, Tensor A) -> Tensor");
  m.def("quadratic_form_and_product(Tensor x, Tensor A) -> (Tensor, Tensor)");
  m.def("quadratic_form_outer(Tensor x, Tensor? g, Tensor? h) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) {
  torchad_ext::QuadraticForm<torchad_ext::QuadraticFormCpu>::implement(m);
}
