// The loops of the quadratic form on the CPU. Threads share out the problems of a batch, or blocks of rows of a large
// one; the blocks depend on n alone, so the result does not depend on the number of threads.
//
// They take long to compile: each dtype has a file of its own.
#pragma once

#include <algorithm>
#include <memory>

#include "caches.h"
#include "matrix_rows.h"
#include "quadratic_form_cpu.h"

namespace torchad_ext {
namespace {

struct QuadraticFormLoops {
  // Short vectors: a problem at a time, in registers.
  template <int n, class T>
  static void run_unrolled(const OuterProducts<T>& outer) {
    parallel_for(outer.count, worth_a_thread / (n * n), [&](int64_t from, int64_t to) {
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
    parallel_for(forms.count, worth_a_thread / (n * n), [&](int64_t from, int64_t to) {
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
  static void run(const OuterProducts<T>& outer) {
    using Number = compute_t<T>;
    constexpr int w = lanes<T>;
    if (with_constant<T>(outer.n, [&](auto n) { run_unrolled<n>(outer); })) return;
    const int64_t n = outer.n;
    const int64_t grain = std::max<int64_t>(1, worth_a_thread / n);
    parallel_for(outer.count * n, grain, [&](int64_t from, int64_t to) {
      const int64_t row_bytes = n * int64_t(sizeof(T)), both = 2 * outer.count * n * row_bytes;  // A is as large
      const bool cached = (n % w > 0 && n < 16 * w) || is_held((to - from) * row_bytes, both);
      int64_t problem = from / n, i = from % n;
      for (int64_t row = from; row < to; ++row) {
        const T* x = outer.x + problem * n;
        const T* h = outer.h == nullptr ? nullptr : outer.h + problem * n;
        const Number x_i = number(x[i]);
        const Number u_i = (outer.g == nullptr ? Number(0) : number(outer.g[problem]) * x_i) +
                           (h == nullptr ? Number(0) : number(h[i]));
        T* G = outer.G + row * n;
        const auto at = [&](auto x_j, auto h_j) {
          return h == nullptr ? broadcast(u_i) * x_j : fma(broadcast(u_i), x_j, broadcast(x_i) * h_j);
        };
        if (n < w) {
          T short_row[w];
          store(short_row, at(load_some(x, n), h == nullptr ? Vector<Number>{} : load_some(h, n)));
          std::memcpy(G, short_row, n * sizeof(T));
        } else {
          const auto columns = [&](int64_t j) {
            return at(load(x + j), h == nullptr ? Vector<Number>{} : load(h + j));
          };
          // Whole vectors of aligned memory; those at the ends overlap their neighbours.
          int64_t j = (-reinterpret_cast<std::uintptr_t>(G) / sizeof(T)) % w;
          if (j > 0) store(G, columns(0));
          if (cached) {
            for (; j + w <= n; j += w) store(G + j, columns(j));
          } else {
            for (; j + w <= n; j += w) store_uncached(G + j, columns(j));
          }
          if (j < n) store(G + n - w, columns(n - w));
        }
        if (++i == n) i = 0, ++problem;
      }
      if (!cached) store_fence();
    });
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
    parallel_for(groups / at_once * blocks, grain, [&](int64_t from, int64_t to) {
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
    parallel_for(groups, worth, [&](int64_t from, int64_t to) {
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

template <class T>
void run_on_cpu(const QuadraticForms<T>& forms) {
  forms.s != nullptr ? QuadraticFormLoops::run<true>(forms) : QuadraticFormLoops::run<false>(forms);
}

template <class T>
void run_on_cpu(const OuterProducts<T>& outer) {
  QuadraticFormLoops::run(outer);
}

}  // namespace torchad_ext
