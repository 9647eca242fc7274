// The kernels of the quadratic form on CUDA. Sums are taken in a fixed order, so a result is the same from run to run.
#pragma once

#include "../kernel.h"
#include "../quadratic_form_data.h"
#include "grid.h"
#include "number.cuh"

namespace torchad_ext {

// The sum over the lanes of a group, in each of them. All lanes of a warp take part.
template <int group, class Number>
__device__ Number group_sum(Number v) {
#pragma unroll
  for (int distance = group / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(whole_warp, v, distance);
  return v;
}

// A group of lanes per problem, n <= group * columns: lane l of it owns x_j and s_j for j = l, l + group, ...
template <int group, int columns, bool product, class T>
__device__ __forceinline__ void small_forms(const QuadraticForms<T>& forms) {
  using Number = compute_t<T>;
  constexpr int groups_of_a_warp = warp / group;
  const int n = int(forms.n);
  const int lane = threadIdx.x % group;
  const int64_t groups = int64_t(gridDim.x) * blockDim.x / group;
  const int64_t end = (forms.count + groups_of_a_warp - 1) / groups_of_a_warp * groups_of_a_warp;  // for whole warps
  for (int64_t task = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / group; task < end; task += groups) {
    const int64_t problem = min(task, forms.count - 1);
    int64_t offset[2];
    forms.batch.offsets(problem, offset);
    const T* A = forms.A + offset[1];
    Number x[columns], s[columns] = {}, q = 0;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const int j = lane + c * group;
      x[c] = j < n ? to_number(forms.x[offset[0] + j * forms.x_stride]) : Number(0);
    }
#pragma unroll
    for (int owner = 0; owner < columns; ++owner) {
      const int last = min(n, (owner + 1) * group);
#pragma unroll 4
      for (int i = owner * group; i < last; ++i) {
        const Number x_i = __shfl_sync(whole_warp, x[owner], i % group, group);
        Number y_i = 0;
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          const int j = lane + c * group;
          const Number a = j < n ? to_number(A[i * forms.row_stride + j]) : Number(0);
          y_i += a * x[c];
          if (product) s[c] += a * x_i;
        }
        y_i = group_sum<group>(y_i);
        q += x_i * y_i;
        if (product && lane == i % group) s[owner] += y_i;
      }
    }
    if (task != problem) continue;
    if (lane == 0) assign(forms.q[problem], q);
#pragma unroll
    for (int c = 0; product && c < columns; ++c) {
      const int j = lane + c * group;
      if (j < n) assign(forms.s[problem * forms.n + j], s[c]);
    }
  }
}

constexpr int rows_together = 4;    // loaded before the first is used
constexpr int rows_at_a_time = 32;  // whose sums over columns are joined at once

// One block per tile: its part of y = A x in Ax [problem, across, n], its part of A^T x in ATx [problem, down, n]. A
// thread owns `width` columns, which it reads in one access.
template <int width, bool product, class T>
__device__ __forceinline__ void tiles_of_forms(const QuadraticForms<T>& forms, const Tiles& tiles, compute_t<T>* Ax,
                                               compute_t<T>* ATx) {
  using Number = compute_t<T>;
  using Columns = Pack<T, width>;
  __shared__ Number warp_y[tile_threads / warp][rows_at_a_time];
  const int64_t n = forms.n;
  for (int64_t task = blockIdx.x; task < forms.count * tiles.down * tiles.across; task += gridDim.x) {
    const int64_t across = task % tiles.across, down = task / tiles.across % tiles.down;
    const int64_t problem = task / (tiles.across * tiles.down);
    int64_t offset[2];
    forms.batch.offsets(problem, offset);
    const T* x = forms.x + offset[0];
    const T* A = forms.A + offset[1];
    const int64_t j = (across * tile_threads + threadIdx.x) * width;
    const bool inside = j < n;
    Number x_j[width], column[width] = {};
#pragma unroll
    for (int c = 0; c < width; ++c) x_j[c] = inside ? to_number(x[(j + c) * forms.x_stride]) : Number(0);

    const int64_t end = min(n, (down + 1) * tiles.rows);
    for (int64_t first = down * tiles.rows; first < end; first += rows_at_a_time) {
      const int rows = int(min(int64_t(rows_at_a_time), end - first));
      for (int r = 0; r < rows; r += rows_together) {
        Columns a[rows_together];
#pragma unroll
        for (int k = 0; k < rows_together; ++k) {
          if (inside && r + k < rows) {
            a[k] = *reinterpret_cast<const Columns*>(A + (first + r + k) * forms.row_stride + j);
          }
        }
#pragma unroll
        for (int k = 0; k < rows_together; ++k) {
          Number y = 0;
          if (inside && r + k < rows) {
            const Number x_i = to_number(x[(first + r + k) * forms.x_stride]);
#pragma unroll
            for (int c = 0; c < width; ++c) {
              y += to_number(a[k].value[c]) * x_j[c];
              if (product) column[c] += to_number(a[k].value[c]) * x_i;
            }
          }
          y = group_sum<warp>(y);
          if (threadIdx.x % warp == 0 && r + k < rows) warp_y[threadIdx.x / warp][r + k] = y;
        }
      }
      __syncthreads();
      if (int(threadIdx.x) < rows) {
        Number total = 0;
        for (int w = 0; w < tile_threads / warp; ++w) total += warp_y[w][threadIdx.x];
        Ax[(problem * tiles.across + across) * n + first + threadIdx.x] = total;
      }
      __syncthreads();
    }
#pragma unroll
    for (int c = 0; product && c < width; ++c) {
      if (inside) ATx[(problem * tiles.down + down) * n + j + c] = column[c];
    }
  }
}

// The sum of `count` parts [count, n] at j.
template <class Number>
__device__ Number sum_of_parts(const Number* part, int64_t count, int64_t n, int64_t j) {
  Number sum = 0;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) sum += part[i * n + j];
  return sum;
}

// s = A x + A^T x
template <class T>
__device__ __forceinline__ void products(const QuadraticForms<T>& forms, const Tiles& tiles, const compute_t<T>* Ax,
                                         const compute_t<T>* ATx) {
  const int64_t n = forms.n;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < forms.count * n; i += stride) {
    const int64_t problem = i / n, j = i % n;
    assign(forms.s[i], sum_of_parts(Ax + problem * tiles.across * n, tiles.across, n, j) +
                           sum_of_parts(ATx + problem * tiles.down * n, tiles.down, n, j));
  }
}

// q = x . A x, one block per problem.
template <class T>
__device__ __forceinline__ void values(const QuadraticForms<T>& forms, const Tiles& tiles, const compute_t<T>* Ax) {
  using Number = compute_t<T>;
  __shared__ Number warp_q[tile_threads / warp];
  for (int64_t problem = blockIdx.x; problem < forms.count; problem += gridDim.x) {
    int64_t offset[2];
    forms.batch.offsets(problem, offset);
    Number q = 0;
    for (int64_t j = threadIdx.x; j < forms.n; j += tile_threads) {
      q += to_number(forms.x[offset[0] + j * forms.x_stride]) *
           sum_of_parts(Ax + problem * tiles.across * forms.n, tiles.across, forms.n, j);
    }
    q = group_sum<warp>(q);
    if (threadIdx.x % warp == 0) warp_q[threadIdx.x / warp] = q;
    __syncthreads();
    if (threadIdx.x == 0) {
      Number total = 0;
      for (int w = 0; w < tile_threads / warp; ++w) total += warp_q[w];
      assign(forms.q[problem], total);
    }
    __syncthreads();
  }
}

// G_ij = u_i x_j + x_i h_j with u = g x + h; `width` neighbours of a row at a time.
template <int width, class Index, class T>
__device__ __forceinline__ void outer_products(const OuterProducts<T>& outer, Index packs) {
  using Number = compute_t<T>;
  using Columns = Pack<T, width>;
  const Index n = Index(outer.n), of_a_row = n / width;
  const Index stride = Index(gridDim.x) * blockDim.x;
  for (Index at = Index(blockIdx.x) * blockDim.x + threadIdx.x; at < packs; at += stride) {
    const Index row = at / of_a_row, problem = row / n;
    const int64_t column = int64_t(problem) * n + (at - row * of_a_row) * width;
    const Number x_i = to_number(outer.x[row]);
    // No product with a g or h that is none: 0 times infinity is no 0.
    Number u_i = outer.g == nullptr ? Number(0) : to_number(outer.g[problem]) * x_i;
    if (outer.h != nullptr) u_i += to_number(outer.h[row]);
    const Columns x = *reinterpret_cast<const Columns*>(outer.x + column);
    Columns h, G;
    if (outer.h != nullptr) h = *reinterpret_cast<const Columns*>(outer.h + column);
#pragma unroll
    for (int c = 0; c < width; ++c) {
      const Number rest = outer.h == nullptr ? Number(0) : x_i * to_number(h.value[c]);
      assign(G.value[c], rest + u_i * to_number(x.value[c]));
    }
    reinterpret_cast<Columns*>(outer.G)[at] = G;
  }
}

}  // namespace torchad_ext

// The kernels for numbers of a dtype, to which quadratic_form.cpp gives their arguments.
#define TORCHAD_EXT_SMALL(dtype, group, columns)                             \
  extern "C" __global__ void __launch_bounds__(small_threads, 4)             \
      small_##group##_##columns##_value_##dtype(QuadraticForms<T> forms) {   \
    small_forms<group, columns, false>(forms);                               \
  }                                                                          \
  extern "C" __global__ void __launch_bounds__(small_threads, 4)             \
      small_##group##_##columns##_product_##dtype(QuadraticForms<T> forms) { \
    small_forms<group, columns, true>(forms);                                \
  }
#define TORCHAD_EXT_WIDTH(dtype, name, width)                                                         \
  extern "C" __global__ void __launch_bounds__(tile_threads, 2)                                       \
      tiles_##name##_value_##dtype(QuadraticForms<T> forms, Tiles tiles, Number* Ax, Number*) {       \
    tiles_of_forms<width, false>(forms, tiles, Ax, nullptr);                                          \
  }                                                                                                   \
  extern "C" __global__ void __launch_bounds__(tile_threads, 2)                                       \
      tiles_##name##_product_##dtype(QuadraticForms<T> forms, Tiles tiles, Number* Ax, Number* ATx) { \
    tiles_of_forms<width, true>(forms, tiles, Ax, ATx);                                               \
  }                                                                                                   \
  extern "C" __global__ void __launch_bounds__(tile_threads)                                          \
      outer_##name##_32_##dtype(OuterProducts<T> outer, uint32_t packs) {                             \
    outer_products<width>(outer, packs);                                                              \
  }                                                                                                   \
  extern "C" __global__ void __launch_bounds__(tile_threads)                                          \
      outer_##name##_64_##dtype(OuterProducts<T> outer, int64_t packs) {                              \
    outer_products<width>(outer, packs);                                                              \
  }
#define TORCHAD_EXT_QUADRATIC_FORM(dtype)                                                             \
  namespace torchad_ext::quadratic_form_##dtype {                                                     \
    using T = storage_t<Dtype::dtype>;                                                                \
    using Number = compute_t<T>;                                                                      \
    TORCHAD_EXT_SMALL(dtype, 4, 1)                                                                    \
    TORCHAD_EXT_SMALL(dtype, 8, 1)                                                                    \
    TORCHAD_EXT_SMALL(dtype, 16, 1)                                                                   \
    TORCHAD_EXT_SMALL(dtype, 32, 1)                                                                   \
    TORCHAD_EXT_SMALL(dtype, 32, 2)                                                                   \
    TORCHAD_EXT_SMALL(dtype, 32, 4)                                                                   \
    TORCHAD_EXT_WIDTH(dtype, narrow, 1)                                                               \
    TORCHAD_EXT_WIDTH(dtype, wide, pack_size(sizeof(T)))                                              \
    extern "C" __global__ void __launch_bounds__(tile_threads)                                        \
        products_##dtype(QuadraticForms<T> forms, Tiles tiles, const Number* Ax, const Number* ATx) { \
      products(forms, tiles, Ax, ATx);                                                                \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(tile_threads)                                        \
        values_##dtype(QuadraticForms<T> forms, Tiles tiles, const Number* Ax) {                      \
      values(forms, tiles, Ax);                                                                       \
    }                                                                                                 \
  }
