// The quadratic form on the CPU. Threads share out the problems of a batch, or blocks of rows of a large one; the
// blocks depend on n alone, so the result does not depend on the number of threads.
#include "quadratic_form.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>

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

// Calls f with n as a constant if it is at most `most`, which loops over such a short vector are unrolled for.
template <int most, class F>
bool with_constant(int64_t n, F f) {
  if constexpr (most > 0) {
    if (n == most) return f(std::integral_constant<int, most>{}), true;
    return with_constant<most - 1>(n, f);
  }
  return false;
}

struct QuadraticFormCpu {
  using Half = torchad_ext::Half;
  using BFloat16 = torchad_ext::BFloat16;

  static void prepare(const Tensor& output) {
    advise_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  }

  // Short vectors: a problem at a time, in registers.
  static constexpr int most_unrolled = 8;
  static constexpr int64_t worth_a_thread = 1 << 14;  // elements of A or G

  template <int n, class T>
  static void run_unrolled(const OuterProducts<T>& outer) {
    using Number = compute_t<T>;
    torch::stable::parallel_for(0, outer.count, worth_a_thread / (n * n), [&](int64_t from, int64_t to) {
      for (int64_t problem = from; problem < to; ++problem) {
        Number x[n], h[n], u[n];  // u = g x + h, without a product where g is none: 0 times infinity is no 0
        for (int i = 0; i < n; ++i) {
          x[i] = number(outer.x[problem * n + i]);
          h[i] = outer.h == nullptr ? Number(0) : number(outer.h[problem * n + i]);
          u[i] = outer.g == nullptr ? h[i] : std::fma(number(outer.g[problem]), x[i], h[i]);
        }
        T* G = outer.G + problem * n * n;
        for (int i = 0; i < n; ++i) {
          for (int j = 0; j < n; ++j) {
            write(G + i * n + j, outer.h == nullptr ? u[i] * x[j] : std::fma(u[i], x[j], x[i] * h[j]));
          }
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
        const T* A = forms.A + offset[1];
        Number q = 0, x[n], s[n] = {};
        for (int i = 0; i < n; ++i) x[i] = number(forms.x[offset[0] + i * forms.x_stride]);
        for (int i = 0; i < n; ++i) {
          Number y_i = 0;
          for (int j = 0; j < n; ++j) {
            const Number a = number(A[i * forms.row_stride + j]);
            y_i = std::fma(a, x[j], y_i);
            s[j] = std::fma(a, x[i], s[j]);
          }
          q = std::fma(x[i], y_i, q);
          s[i] += y_i;
        }
        write(forms.q + problem, q);
        for (int i = 0; product && i < n; ++i) write(forms.s + problem * n + i, s[i]);
      }
    });
  }

  template <class T>
  static void run(const OuterProducts<T>& outer, const Tensor&) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    if (with_constant<most_unrolled>(outer.n, [&](auto n) { run_unrolled<n>(outer); })) return;
    const int64_t n = outer.n, whole = n / w * w;
    const int64_t grain = std::max<int64_t>(1, worth_a_thread / n);
    torch::stable::parallel_for(0, outer.count * n, grain, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        const int64_t problem = row / n;
        const T* x = outer.x + problem * n;
        const T* h = outer.h == nullptr ? nullptr : outer.h + problem * n;
        const Number x_i = number(outer.x[row]);
        const Number u_i = (outer.g == nullptr ? Number(0) : number(outer.g[problem]) * x_i) +
                           (h == nullptr ? Number(0) : number(outer.h[row]));
        T* G = outer.G + row * n;
        const auto columns = [&](Vector<Number> x_j, Vector<Number> h_j) {
          return h == nullptr ? broadcast(u_i) * x_j : fma(broadcast(u_i), x_j, broadcast(x_i) * h_j);
        };
        for (int64_t j = 0; j < whole; j += w) {
          store(G + j, columns(load(x + j), h == nullptr ? Vector<Number>{} : load(h + j)));
        }
        if (whole < n) {
          T rest[w];
          const auto h_j = h == nullptr ? Vector<Number>{} : load_some(h + whole, n - whole);
          store(rest, columns(load_some(x + whole, n - whole), h_j));
          std::memcpy(G + whole, rest, (n - whole) * sizeof(T));
        }
      }
    });
  }

  template <class T>
  static void run(const QuadraticForms<T>& forms, const Tensor&) {
    forms.s != nullptr ? run<true>(forms) : run<false>(forms);
  }

  template <bool product, class T>
  static void run(const QuadraticForms<T>& forms) {
    using Number = compute_t<T>;
    if (with_constant<most_unrolled>(forms.n, [&](auto n) { run_unrolled<product, n>(forms); })) return;
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
        read(forms.x + offset[0], forms.x_stride, n, x.get());
        Number* s = product && blocks > 1 ? &s_part[task * padded] : own_s.get();
        std::fill_n(s, padded, Number(0));
        q_part[task] =
            rows<product>(forms, forms.A + offset[1], x.get(), s, Ax.get(), begin, std::min(n, begin + block));
        for (int64_t i = begin; product && i < std::min(n, begin + block); ++i) s[i] += Ax[i];
        if (product && blocks == 1) write_row(s, forms.s + problem * n, n);
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
      write_row(total, forms.s + problem * n, n);
    }
  }

  template <class T>
  static void read(const T* from, int64_t stride, int64_t n, compute_t<T>* to) {
    T run[lanes<T>] = {};
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const int64_t count = std::min<int64_t>(lanes<T>, n - j);
      for (int64_t i = 0; i < count; ++i) run[i] = from[(j + i) * stride];
      for (int64_t i = count; i < lanes<T>; ++i) run[i] = T{};
      store(to + j, load(run));
    }
  }

  template <class T>
  static void write_row(const compute_t<T>* from, T* to, int64_t n) {
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
