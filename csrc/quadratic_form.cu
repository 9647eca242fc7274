// The quadratic form on CUDA. Sums are taken in a fixed order, so a result is the same from run to run.
#include "cuda.cuh"
#include "quadratic_form.h"

namespace torchad_ext {
namespace {

constexpr int warp = 32;
constexpr unsigned whole_warp = 0xffffffff;

// The sum over a warp, in every lane.
template <class Number>
__device__ Number warp_sum(Number v) {
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(whole_warp, v, distance);
  return v;
}

// One warp per problem, n <= 32 * columns: lane l owns x_j and s_j for j = l, l + 32, ...
template <int columns, bool product, class T>
__global__ void __launch_bounds__(128) small_kernel(QuadraticForms<T> forms) {
  using Number = number_t<T>;
  const int n = int(forms.n);
  const int lane = threadIdx.x % warp;
  const int64_t warps = int64_t(gridDim.x) * blockDim.x / warp;
  for (int64_t problem = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / warp; problem < forms.count;
       problem += warps) {
    int64_t offset[2];
    forms.batch.offsets(problem, offset);
    const T* A = forms.A + offset[1];
    Number x[columns], s[columns] = {}, q = 0;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const int j = lane + c * warp;
      x[c] = j < n ? to_number(forms.x[offset[0] + j * forms.x_stride]) : Number(0);
    }
#pragma unroll
    for (int owner = 0; owner < columns; ++owner) {
      for (int i = owner * warp; i < min(n, (owner + 1) * warp); ++i) {
        const Number x_i = __shfl_sync(whole_warp, x[owner], i % warp);
        Number y_i = 0;
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          const int j = lane + c * warp;
          const Number a = j < n ? to_number(A[i * forms.row_stride + j]) : Number(0);
          y_i += a * x[c];
          if (product) s[c] += a * x_i;
        }
        y_i = warp_sum(y_i);
        q += x_i * y_i;
        if (product && lane == i % warp) s[owner] += y_i;
      }
    }
    if (lane == 0) assign(forms.q[problem], q);
#pragma unroll
    for (int c = 0; product && c < columns; ++c) {
      const int j = lane + c * warp;
      if (j < n) assign(forms.s[problem * forms.n + j], s[c]);
    }
  }
}

constexpr int tile_rows = 32;
constexpr int tile_threads = 256;

// One block per problem and tile of rows: y = A x for its rows, and its part of A^T x.
template <bool product, class T>
__global__ void __launch_bounds__(tile_threads)
    tile_kernel(QuadraticForms<T> forms, int64_t tiles, number_t<T>* y, number_t<T>* part) {
  using Number = number_t<T>;
  __shared__ Number row_x[tile_rows];
  __shared__ Number warp_y[tile_threads / warp][tile_rows];
  const int64_t n = forms.n;
  for (int64_t task = blockIdx.x; task < forms.count * tiles; task += gridDim.x) {
    const int64_t problem = task / tiles, first = task % tiles * tile_rows;
    const int rows = int(min(int64_t(tile_rows), n - first));
    int64_t offset[2];
    forms.batch.offsets(problem, offset);
    const T* x = forms.x + offset[0];
    const T* A = forms.A + offset[1] + first * forms.row_stride;
    if (threadIdx.x < tile_rows) {
      row_x[threadIdx.x] = int(threadIdx.x) < rows ? to_number(x[(first + threadIdx.x) * forms.x_stride]) : Number(0);
    }
    __syncthreads();
    Number sum[tile_rows] = {};
    for (int64_t j = threadIdx.x; j < n; j += tile_threads) {
      const Number x_j = to_number(x[j * forms.x_stride]);
      Number column = 0;
#pragma unroll
      for (int r = 0; r < tile_rows; ++r) {
        const Number a = r < rows ? to_number(A[r * forms.row_stride + j]) : Number(0);
        sum[r] += a * x_j;
        if (product) column += a * row_x[r];
      }
      if (product) part[task * n + j] = column;
    }
#pragma unroll
    for (int r = 0; r < tile_rows; ++r) {
      const Number total = warp_sum(sum[r]);
      if (threadIdx.x % warp == 0) warp_y[threadIdx.x / warp][r] = total;
    }
    __syncthreads();
    if (int(threadIdx.x) < rows) {
      Number total = 0;
      for (int w = 0; w < tile_threads / warp; ++w) total += warp_y[w][threadIdx.x];
      y[problem * n + first + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

// s = y + the parts of A^T x.
template <class T>
__global__ void product_kernel(QuadraticForms<T> forms, int64_t tiles, const number_t<T>* y, const number_t<T>* part) {
  const int64_t n = forms.n;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < forms.count * n; i += stride) {
    const int64_t problem = i / n, j = i % n;
    number_t<T> s = y[i];
    for (int64_t tile = 0; tile < tiles; ++tile) s += part[(problem * tiles + tile) * n + j];
    assign(forms.s[i], s);
  }
}

// q = x . y, one block per problem.
template <class T>
__global__ void __launch_bounds__(tile_threads) value_kernel(QuadraticForms<T> forms, const number_t<T>* y) {
  using Number = number_t<T>;
  __shared__ Number warp_q[tile_threads / warp];
  for (int64_t problem = blockIdx.x; problem < forms.count; problem += gridDim.x) {
    int64_t offset[2];
    forms.batch.offsets(problem, offset);
    Number q = 0;
    for (int64_t j = threadIdx.x; j < forms.n; j += tile_threads) {
      q += to_number(forms.x[offset[0] + j * forms.x_stride]) * y[problem * forms.n + j];
    }
    q = warp_sum(q);
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

template <class T>
__global__ void __launch_bounds__(tile_threads) outer_kernel(OuterProducts<T> outer, int64_t elements) {
  using Number = number_t<T>;
  const int64_t n = outer.n;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < elements; at += stride) {
    const int64_t row = at / n, problem = row / n, column = problem * n + at % n;
    const Number x_i = to_number(outer.x[row]);
    Number u_i = outer.g == nullptr ? Number(0) : to_number(outer.g[problem]) * x_i;
    Number result = 0;
    if (outer.h != nullptr) {
      u_i += to_number(outer.h[row]);
      result = x_i * to_number(outer.h[column]);
    }
    assign(outer.G[at], result + u_i * to_number(outer.x[column]));
  }
}

int blocks_for(int64_t work, int64_t per_block) {
  constexpr int64_t most = int64_t(1) << 22;
  return int(std::min((work + per_block - 1) / per_block, most));
}

// Device memory in the compute type of T, freed in stream order with the tensor that owns it.
template <class T>
Tensor scratch(const Tensor& like, int64_t elements) {
  const int64_t bytes = elements * int64_t(sizeof(number_t<T>));
  const int64_t sizes[] = {(bytes + int64_t(like.element_size()) - 1) / int64_t(like.element_size())};
  const int64_t strides[] = {1};
  return empty_strided(like, 1, sizes, strides);
}

struct QuadraticFormCuda {
  using Half = __half;
  using BFloat16 = __nv_bfloat16;

  static void prepare(const Tensor&) {}

  template <class T>
  static void run(const OuterProducts<T>& outer, const Tensor& x) {
    const DeviceGuard guard(x.get_device_index());
    const int64_t elements = outer.count * outer.n * outer.n;
    outer_kernel<<<blocks_for(elements, tile_threads), tile_threads, 0, current_stream(x.get_device_index())>>>(
        outer, elements);
    check_launch(__PRETTY_FUNCTION__);
  }

  template <class T>
  static void run(const QuadraticForms<T>& forms, const Tensor& x) {
    const DeviceGuard guard(x.get_device_index());
    forms.s != nullptr ? run<true>(forms, x) : run<false>(forms, x);
    check_launch(__PRETTY_FUNCTION__);
  }

  template <bool product, class T>
  static void run(const QuadraticForms<T>& forms, const Tensor& x) {
    const cudaStream_t stream = current_stream(x.get_device_index());
    constexpr int threads = 128;
    const int blocks = blocks_for(forms.count, threads / warp);
    if (forms.n <= 32) {
      small_kernel<1, product><<<blocks, threads, 0, stream>>>(forms);
    } else if (forms.n <= 64) {
      small_kernel<2, product><<<blocks, threads, 0, stream>>>(forms);
    } else if (forms.n <= 128) {
      small_kernel<4, product><<<blocks, threads, 0, stream>>>(forms);
    } else {
      const int64_t tiles = (forms.n + tile_rows - 1) / tile_rows;
      const Tensor y_memory = scratch<T>(x, forms.count * forms.n);
      const Tensor part_memory = scratch<T>(x, product ? forms.count * tiles * forms.n : 0);
      auto* y = static_cast<number_t<T>*>(y_memory.data_ptr());
      auto* part = static_cast<number_t<T>*>(part_memory.data_ptr());
      tile_kernel<product><<<blocks_for(forms.count * tiles, 1), tile_threads, 0, stream>>>(forms, tiles, y, part);
      if (product) {
        product_kernel<<<blocks_for(forms.count * forms.n, tile_threads), tile_threads, 0, stream>>>(forms, tiles, y,
                                                                                                     part);
      }
      value_kernel<<<blocks_for(forms.count, 1), tile_threads, 0, stream>>>(forms, y);
    }
  }
};

}  // namespace
}  // namespace torchad_ext

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) {
  torchad_ext::QuadraticForm<torchad_ext::QuadraticFormCuda>::implement(m);
}
