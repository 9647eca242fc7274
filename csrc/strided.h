// How the elements of several operands lie in memory. Sizes and strides count elements; stride 0 repeats an element.
// For host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TORCHAD_EXT_HOST_DEVICE __host__ __device__
#else
#define TORCHAD_EXT_HOST_DEVICE
#endif

namespace torchad_ext {

// A loop over elements, innermost dimension first. Operand 0 leads: the dimensions stand in the order of its strides.
template <int operands, int max_dims>
struct Strided {
  int dims;
  int64_t sizes[max_dims];
  int64_t strides[operands][max_dims];

  TORCHAD_EXT_HOST_DEVICE int64_t elements() const {
    int64_t product = 1;
    for (int d = 0; d < dims; ++d) product *= sizes[d];
    return product;
  }

  // Does the operand lie in memory just as the loop runs?
  TORCHAD_EXT_HOST_DEVICE bool contiguous(int operand) const {
    return dims == 0 || (dims == 1 && strides[operand][0] == 1);
  }

  // Is the operand one element, repeated?
  TORCHAD_EXT_HOST_DEVICE bool repeated(int operand) const {
    for (int d = 0; d < dims; ++d) {
      if (strides[operand][d] != 0) return false;
    }
    return true;
  }

  // The offsets of all operands at a linear index of the loop.
  template <class Index>
  TORCHAD_EXT_HOST_DEVICE void offsets(Index index, int64_t (&offset)[operands]) const {
    for (int k = 0; k < operands; ++k) offset[k] = 0;
    for (int d = 0; d < dims; ++d) {
      const Index position = index % Index(sizes[d]);
      index /= Index(sizes[d]);
      for (int k = 0; k < operands; ++k) offset[k] += int64_t(position) * strides[k][d];
    }
  }
};

// The loop over tensors of one shape: dimensions of size 1 dropped, the rest sorted, neighbours merged wherever every
// operand steps through both as through one. False if more than max_dims remain.
template <int operands, int max_dims>
bool coalesce(int dims, const int64_t* sizes, const int64_t* const (&strides)[operands],
              Strided<operands, max_dims>& loop) {
  int order[64];
  int kept = 0;
  for (int d = dims - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    int at = kept++;
    for (; at > 0 && strides[0][order[at - 1]] > strides[0][d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  loop.dims = 0;
  for (int i = 0; i < kept; ++i) {
    const int d = order[i];
    const int last = loop.dims - 1;
    bool merges = last >= 0;
    for (int k = 0; merges && k < operands; ++k) merges = strides[k][d] == loop.strides[k][last] * loop.sizes[last];
    if (merges) {
      loop.sizes[last] *= sizes[d];
      continue;
    }
    if (loop.dims == max_dims) return false;
    loop.sizes[loop.dims] = sizes[d];
    for (int k = 0; k < operands; ++k) loop.strides[k][loop.dims] = strides[k][d];
    ++loop.dims;
  }
  return true;
}

// Do the strides visit dense memory once, in whatever order of dimensions?
inline bool is_dense(int dims, const int64_t* sizes, const int64_t* strides) {
  bool seen[64] = {};
  int64_t expected = 1;
  for (int i = 0; i < dims; ++i) {
    int next = -1;
    for (int d = 0; d < dims && next < 0; ++d) {
      if (!seen[d] && (sizes[d] == 1 || strides[d] == expected)) next = d;
    }
    if (next < 0) return false;
    seen[next] = true;
    expected *= sizes[next];
  }
  return true;
}

// Row-major strides; false if the given ones differ in more than dimensions of size 1.
inline bool contiguous_strides(int dims, const int64_t* sizes, const int64_t* strides, int64_t* result) {
  bool same = true;
  int64_t stride = 1;
  for (int d = dims - 1; d >= 0; --d) {
    same = same && (sizes[d] == 1 || strides[d] == stride);
    result[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  for (int d = 0; d < dims; ++d) same = same || sizes[d] == 0;
  return same;
}

// The strides PyTorch gives the result of an elementwise operation: row-major ones for a contiguous operand, those of a
// dense operand, else dense ones in the operand's order of dimensions (TensorIterator's rule: a stride of 0 compares
// with nothing, equal strides go by size).
inline void result_strides(int dims, const int64_t* sizes, const int64_t* strides, int64_t* result) {
  if (contiguous_strides(dims, sizes, strides, result)) return;
  if (is_dense(dims, sizes, strides)) {
    for (int d = 0; d < dims; ++d) result[d] = strides[d];
    return;
  }
  const auto compare = [&](int a, int b) {
    if (strides[a] == 0 || strides[b] == 0) return 0;
    if (strides[a] != strides[b]) return strides[a] < strides[b] ? -1 : 1;
    return sizes[a] > sizes[b] ? 1 : 0;
  };
  int order[64];
  for (int i = 0; i < dims; ++i) order[i] = dims - 1 - i;
  for (int i = 1; i < dims; ++i) {
    int at = i;
    for (int before = i - 1; before >= 0; --before) {
      const int comparison = compare(order[before], order[at]);
      if (comparison < 0) break;
      if (comparison == 0) continue;
      const int moved = order[before];
      order[before] = order[at];
      order[at] = moved;
      at = before;
    }
  }
  int64_t stride = 1;
  for (int i = 0; i < dims; ++i) {
    result[order[i]] = stride;
    stride *= sizes[order[i]];
  }
}

}  // namespace torchad_ext
