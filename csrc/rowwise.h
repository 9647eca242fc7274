// Functors of rows: the mathematics of one kernel, as passes over a row of n elements, for host and device.
//
// The values of a row and of one of its elements stand in one list: the operands, in the order of the inputs; values of
// the row; values of the element that one pass keeps for the next. A Part is a functor of elements and which values it
// is given. A Stage is a pass: what is computed of each element and reduced over the row, and what follows from that.
#pragma once

#include "functor.h"
#include "kernel.h"

namespace torchad_ext {

// A tensor has a value an element [rows, n], a row [rows, 1], or a column [n]: of outputs, a sum over all rows.
enum class Kind { element, row, column };
enum class Reduction { sum, largest, smallest };

// A row of no more elements is short. Kernels of short rows, which are computed side by side, and of longer ones are
// two.
constexpr int64_t longest_short_row = 15;

template <Kind... given>
struct Kinds {
  static constexpr int count = sizeof...(given);
  static constexpr Kind kind[count + 1] = {given..., Kind::element};

  static TORCHAD_EXT_HOST_DEVICE constexpr int count_of(Kind wanted) { return (0 + ... + (given == wanted)); }

  // The place of the n-th that is computed for each element, a column among them; and of the n-th of a row.
  static TORCHAD_EXT_HOST_DEVICE constexpr int of_elements(int n) { return find(n, false); }
  static TORCHAD_EXT_HOST_DEVICE constexpr int of_rows(int n) { return find(n, true); }

  // How many columns come before a place?
  static TORCHAD_EXT_HOST_DEVICE constexpr int columns_before(int place) {
    int found = 0;
    for (int k = 0; k < place; ++k) found += kind[k] == Kind::column;
    return found;
  }

 private:
  static TORCHAD_EXT_HOST_DEVICE constexpr int find(int n, bool of_row) {
    for (int k = 0; k < count; ++k) {
      if ((kind[k] == Kind::row) == of_row && n-- == 0) return k;
    }
    return -1;
  }
};

template <int... given>
struct Places {
  static constexpr int count = sizeof...(given);
  static constexpr int place[count + 1] = {given..., 0};
};

struct None {
  static constexpr bool is_none = true;
  static TORCHAD_EXT_HOST_DEVICE constexpr bool takes(int) { return false; }
  TORCHAD_EXT_FUNCTION explicit None(const double*) {}
};

template <class Functor, int... arguments>
struct Part {
  static constexpr bool is_none = false;
  Functor functor;

  TORCHAD_EXT_FUNCTION explicit Part(const double* scalars) : functor(make_functor<Functor>(scalars)) {}

  static TORCHAD_EXT_HOST_DEVICE constexpr bool takes(int place) { return ((place == arguments) || ...); }

  template <class T>
  TORCHAD_EXT_FUNCTION auto operator()(const T* values) const {
    return functor(values[arguments]...);
  }
};

// The results of Terms are reduced to the values from reduced_at on; those that are left are kept from kept_at on. The
// results of Follows become the values from row_at on.
template <class Terms_, int reduced_at_, int kept_at_, class Follows_, int row_at_, Reduction... reductions>
struct Stage {
  using Terms = Terms_;
  using Follows = Follows_;
  static constexpr int reduced_at = reduced_at_, kept_at = kept_at_, row_at = row_at_;
  static constexpr int count = sizeof...(reductions);
  static constexpr Reduction reduction[count + 1] = {reductions..., Reduction::sum};
  Terms terms;
  Follows follows;

  TORCHAD_EXT_FUNCTION explicit Stage(const double* scalars) : terms(scalars), follows(scalars) {}
};

namespace detail {

template <class... Stages>
struct Chain {
  static constexpr int count = 0;
  TORCHAD_EXT_FUNCTION explicit Chain(const double*) {}
};
template <class First, class... Rest>
struct Chain<First, Rest...> {
  static constexpr int count = 1 + sizeof...(Rest);
  First first;
  Chain<Rest...> rest;
  TORCHAD_EXT_FUNCTION explicit Chain(const double* scalars) : first(scalars), rest(scalars) {}
};

}  // namespace detail

// A functor of rows. The first stage has no terms. Elements gives the outputs of kind element and column, in order;
// RowOutputs has the places of those of kind row.
template <class Inputs_, class Outputs_, class RowOutputs_, class Elements_, int values_, int kept_, class... Stages>
struct RowFunctor {
  using Inputs = Inputs_;
  using Outputs = Outputs_;
  using RowOutputs = RowOutputs_;
  using Elements = Elements_;
  static constexpr int values = values_, kept = kept_;
  static constexpr int kept_from = Inputs::count + values;  // the place of the first kept value
  static constexpr int all = kept_from + kept;
  detail::Chain<Stages...> stages;
  Elements elements;

  TORCHAD_EXT_FUNCTION explicit RowFunctor(const double* scalars) : stages(scalars), elements(scalars) {}
};

// How the rows of several operands lie in memory, outputs first: element j of row i of operand k stands at
// data[k] + offset(k, i) + j * steps[k], where a step is 1, or 0 for one number in all elements of a row. An output of
// kind row that is not wanted is null, in a kernel of long rows.
struct Rows {
  int64_t length;  // n
  int64_t count;   // of rows
  void* const* data;
  const int64_t* steps;
  const int64_t* row_strides;
  int dims;  // that rows stand in
  const int64_t* sizes;
  const int64_t* const* strides;  // [operands][dims], null where the rows stand row_strides apart

  int64_t offset(int operand, int64_t row) const {
    const int64_t* stride = strides[operand];
    if (stride == nullptr) return row * row_strides[operand];
    int64_t sum = 0;
    for (int d = dims - 1; d >= 0; --d) {
      sum += row % sizes[d] * stride[d];
      row /= sizes[d];
    }
    return sum;
  }
};

struct RowKernel : Kernel {
  const Kind* kinds;  // of the outputs, then of the inputs
  // Computes rows [begin, end). Adds to sums [column outputs, length].
  void (*run)(const Rows& rows, const double* scalars, int64_t begin, int64_t end, double* sums);
  // Stores the sum of `count` arrays of numbers, `stride` apart.
  void (*store_sum)(const double* sums, int64_t count, int64_t stride, int64_t length, void* to);
  bool is_short;
};

}  // namespace torchad_ext
