// Rows of a matrix in vector registers: sums over lanes, transposes, and products with a few vectors at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace torchad_ext {
namespace {

constexpr int64_t worth_a_thread = 1 << 14;  // elements of a matrix

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

}  // namespace
}  // namespace torchad_ext
