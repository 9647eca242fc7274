// How the elements of several operands lie in memory. Sizes and strides count elements; stride 0 repeats an element.
// For host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace torchad_ext {

constexpr int most_dims = 64;  // of a tensor that a kernel reads

// A loop over elements, innermost dimension first. Operand 0 leads: the dimensions stand in the order of its strides.
struct Loop {
  int dims;
  const int64_t* sizes;    // [dims]
  const int64_t* strides;  // [operands, most_dims]
  void* const* data;       // [operands]

  int64_t stride(int operand, int dim) const { return strides[operand * most_dims + dim]; }

  int64_t elements() const {
    int64_t product = 1;
    for (int d = 0; d < dims; ++d) product *= sizes[d];
    return product;
  }

  // Does the operand lie in memory just as the loop runs?
  bool contiguous(int operand) const {
    int64_t expected = 1;
    for (int d = 0; d < dims; ++d) {
      if (stride(operand, d) != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }

  // Where an operand has the element of a linear index.
  int64_t offset(int operand, int64_t index) const {
    int64_t sum = 0;
    for (int d = 0; d < dims && index > 0; ++d) {
      sum += index % sizes[d] * stride(operand, d);
      index /= sizes[d];
    }
    return sum;
  }

  // Is the operand one element, repeated?
  bool repeated(int operand) const {
    for (int d = 0; d < dims; ++d) {
      if (stride(operand, d) != 0) return false;
    }
    return true;
  }
};

// Makes the loop over tensors of one shape: dimensions of size 1 dropped, the rest sorted, neighbours merged wherever
// every operand steps through both as through one. Returns the number of dimensions left.
inline int coalesce(int operands, int dims, const int64_t* sizes, const int64_t* const* strides, int64_t* loop_sizes,
                    int64_t* loop_strides) {
  int order[most_dims];
  int kept = 0;
  for (int d = dims - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    int at = kept++;
    for (; at > 0 && strides[0][order[at - 1]] > strides[0][d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  int loop_dims = 0;
  for (int i = 0; i < kept; ++i) {
    const int d = order[i];
    const int last = loop_dims - 1;
    bool merges = last >= 0;
    for (int k = 0; merges && k < operands; ++k) {
      merges = strides[k][d] == loop_strides[k * most_dims + last] * loop_sizes[last];
    }
    if (merges) {
      loop_sizes[last] *= sizes[d];
      continue;
    }
    loop_sizes[loop_dims] = sizes[d];
    for (int k = 0; k < operands; ++k) loop_strides[k * most_dims + loop_dims] = strides[k][d];
    ++loop_dims;
  }
  return loop_dims;
}

constexpr int most_cuda_dims = 25;  // as many as PyTorch's own CUDA loops take

// A loop that can be passed to the device by value.
template <int operands>
struct Strided {
  int64_t dims;
  int64_t sizes[most_cuda_dims];
  int64_t strides[operands][most_cuda_dims];

  // The offsets of all operands at a linear index of the loop.
  template <class Index>
  TORCHAD_EXT_HOST_DEVICE void offsets(Index index, int64_t (&offset)[operands]) const {
    for (int k = 0; k < operands; ++k) offset[k] = 0;
    for (int d = 0; d < dims; ++d) {
      const bool outermost = d == dims - 1;  // what is left needs no division
      const Index position = outermost ? index : index % Index(sizes[d]);
      if (!outermost) index /= Index(sizes[d]);
      for (int k = 0; k < operands; ++k) offset[k] += int64_t(position) * strides[k][d];
    }
  }
};

// How many numbers a Strided of so many operands is, and how it is written where that many are known at run time alone.
inline int64_t strided_size(int operands) { return 1 + (1 + operands) * most_cuda_dims; }
inline void write_strided(const Loop& loop, int operands, int64_t* to) {
  *to++ = loop.dims;
  for (int k = -1; k < operands; ++k, to += most_cuda_dims) {
    for (int d = 0; d < loop.dims; ++d) to[d] = k < 0 ? loop.sizes[d] : loop.stride(k, d);
  }
}

// Is an output with these strides a sum along some dimension? Its stride there is 0.
inline bool is_summed(int dims, const int64_t* sizes, const int64_t* strides) {
  for (int d = 0; d < dims; ++d) {
    if (sizes[d] != 1 && strides[d] == 0) return true;
  }
  return false;
}

// Do two tensors with these strides have each element at the same place in memory?
inline bool lie_alike(int dims, const int64_t* sizes, const int64_t* strides, const int64_t* others) {
  if (strides == others) return true;
  for (int d = 0; d < dims; ++d) {
    if (sizes[d] != 1 && strides[d] != others[d]) return false;
  }
  return true;
}

// How many sums that are.
inline int64_t count_sums(int dims, const int64_t* sizes, const int64_t* strides) {
  int64_t count = 1;
  for (int d = 0; d < dims; ++d) count *= strides[d] == 0 ? 1 : sizes[d];
  return count;
}

// Do the strides visit dense memory once, in whatever order of dimensions?
inline bool is_dense(int dims, const int64_t* sizes, const int64_t* strides) {
  bool seen[most_dims] = {};
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

// The same for memory that may be repeated along dimensions.
inline bool is_dense_or_summed(int dims, const int64_t* sizes, const int64_t* strides) {
  int64_t kept[most_dims];
  for (int d = 0; d < dims; ++d) kept[d] = strides[d] == 0 ? 1 : sizes[d];
  return is_dense(dims, kept, strides);
}

// The strides of dense memory in an order of dimensions, innermost first; false if the given ones differ in more than
// dimensions of size 1.
inline bool dense_strides(int dims, const int* order, const int64_t* sizes, const int64_t* strides, int64_t* result) {
  bool same = true, empty = false;
  int64_t stride = 1;
  for (int i = 0; i < dims; ++i) {
    const int d = order[i];
    same = same && (sizes[d] == 1 || strides[d] == stride);
    empty = empty || sizes[d] == 0;
    result[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return same || empty;
}

// The strides PyTorch gives the result of an elementwise operation (TensorIterator's rule): row-major ones if all
// operands are so, then channels-last ones, those of the operands if they agree and are dense, else dense ones in the
// operands' order of dimensions, where the first operand that can tell two dimensions apart decides: a stride of 0
// tells nothing, of equal strides the larger size comes last.
inline void result_strides(int operands, int dims, const int64_t* sizes, const int64_t* const* strides,
                           int64_t* result) {
  constexpr int channels_last[] = {1, 3, 2, 0};
  int order[most_dims];
  for (int i = 0; i < dims; ++i) order[i] = dims - 1 - i;
  const auto all_dense = [&](const int* in_order) {
    bool dense = true;
    for (int k = 0; k < operands && dense; ++k) dense = dense_strides(dims, in_order, sizes, strides[k], result);
    return dense;
  };
  if (all_dense(order) || (dims == 4 && all_dense(channels_last))) return;
  bool agree = true;
  for (int k = 1; k < operands; ++k) {
    for (int d = 0; d < dims; ++d) agree = agree && strides[k][d] == strides[0][d];
  }
  if (agree && is_dense(dims, sizes, strides[0])) {
    for (int d = 0; d < dims; ++d) result[d] = strides[0][d];
    return;
  }
  const auto compare = [&](int a, int b) {
    for (int k = 0; k < operands; ++k) {
      if (strides[k][a] == 0 || strides[k][b] == 0) continue;
      if (strides[k][a] != strides[k][b]) return strides[k][a] < strides[k][b] ? -1 : 1;
      if (sizes[a] > sizes[b]) return 1;
    }
    return 0;
  };
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
