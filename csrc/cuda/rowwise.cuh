// The CUDA loop over rows: any functor of rows, over operands of any stride.
//
// A group of lanes computes a row: as few as read it in one access each, at most a warp; the whole block where a row
// has more than 1,024 elements. Elements move in packs of 16 bytes, which the lanes take in turn. Every pass reads the
// row again, from the first cache, or from registers where a lane has one pack of it; what a pass keeps for others on
// the CPU is computed again, which takes less time than memory.
//
// Nothing depends on the order in which threads run. A sum over a row has the order that its length and the dtype give:
// 64 numbers of a lane one after another and such sums in double, then the lanes by halves, then the warps of a block
// one after another. A sum over all rows is made of those of each group, of at most 64 rows; those are joined by halves
// in a block, and by a second kernel, in double, for all blocks.
#pragma once

#include "../kernel.h"
#include "../rowwise.h"
#include "grid.h"
#include "number.cuh"

namespace torchad_ext {

// A number that the compiler knows.
template <int number>
struct Known {
  __device__ constexpr operator int() const { return number; }
};

// Calls f with the numbers below n.
template <class F, std::size_t... i>
__device__ __forceinline__ void each_of([[maybe_unused]] F f, std::index_sequence<i...>) {
  (f(Known<int(i)>{}), ...);
}
template <int n, class F>
__device__ __forceinline__ void each(F f) {
  each_of(f, std::make_index_sequence<n>{});
}

template <Reduction reduction, class Number>
__device__ __forceinline__ Number identity() {
  return reduction == Reduction::sum ? Number(0) : reduction == Reduction::largest ? -INFINITY : INFINITY;
}

template <Reduction reduction, class Number>
__device__ __forceinline__ Number combined(Number a, Number b) {
  if constexpr (reduction == Reduction::sum) return a + b;
  if constexpr (reduction == Reduction::largest) return maximum(a, b);
  if constexpr (reduction == Reduction::smallest) return minimum(a, b);
}

// A functor of rows for a dtype, and the arguments of its kernels.
template <class F, int numbers, Dtype dtype>
struct RowSignature {
  using Functor = F;
  using T = storage_t<dtype>;
  using Number = compute_t<T>;
  using Inputs = typename Functor::Inputs;
  using Outputs = typename Functor::Outputs;
  using Pack = torchad_ext::Pack<T, pack_size(sizeof(T))>;
  static constexpr int inputs = Inputs::count, outputs = Outputs::count, operands = outputs + inputs;
  static constexpr int columns = Outputs::count_of(Kind::column);
  using Data = Array<T*, operands>;
  using Steps = Array<int64_t, operands>;
  using Packed = Array<bool, operands>;
  using Numbers = Array<double, numbers>;  // the last is the length of a row
  using Loop = Strided<operands>;
};

// What a thread knows of the rows of its group, one after another.
template <class S>
struct RowLane {
  using Functor = typename S::Functor;
  using T = typename S::T;
  using Number = typename S::Number;
  using Inputs = typename S::Inputs;
  using Outputs = typename S::Outputs;
  using Pack = typename S::Pack;
  static constexpr int inputs = S::inputs, outputs = S::outputs, operands = S::operands, columns = S::columns;

  const Functor& functor;
  const typename S::Data& data;
  const typename S::Steps& steps;
  const typename S::Packed& packed;
  const typename S::Loop& loop;
  const RowCut& cut;
  Number* const sums;  // of the group, [columns, packs, Pack::size]
  const int lane = int(threadIdx.x) % cut.lanes;

  T* at[operands];                        // the first element of the row
  Number values[Functor::kept_from];      // of the row
  Pack from[inputs];                      // the pack of each operand that was read last
  int read = -1;                          // its number
  Number added[columns + 1][Pack::size];  // sums over rows of a pack
  int adding = -1;                        // its number

  // How many elements does a pack have?
  __device__ __forceinline__ int size_of(int pack) const {
    return int(min(int64_t(Pack::size), cut.length - int64_t(pack) * Pack::size));
  }

  __device__ __forceinline__ void begin(int64_t row) {
    int64_t offset[operands];
    if (cut.rows < max_index) {
      loop.offsets(uint32_t(row), offset);
    } else {
      loop.offsets(row, offset);
    }
    each<operands>([&](auto k) { at[k] = data.value[k] + offset[k]; });
    each<inputs>([&](auto k) {
      if constexpr (Inputs::kind[k] == Kind::row) values[k] = to_number(*at[outputs + k]);
    });
    read = -1;
  }

  // Elements past the end are copies of the last one.
  __device__ __forceinline__ void read_pack(int pack) {
    if (pack == read) return;
    read = pack;
    each<inputs>([&](auto k) {
      if constexpr (Inputs::kind[k] != Kind::row) {
        constexpr bool is_column = Inputs::kind[k] == Kind::column;  // which has one place for all rows
        const T* const begin = is_column ? data.value[outputs + k] : at[outputs + k];
        if (packed.value[outputs + k]) {
          from[k] = reinterpret_cast<const Pack*>(begin)[pack];
        } else {
#pragma unroll
          for (int j = 0; j < Pack::size; ++j) {
            const int64_t element = min(int64_t(pack) * Pack::size + j, cut.length - 1);
            from[k].value[j] = begin[element * steps.value[outputs + k]];
          }
        }
      }
    });
  }

  // The values that a part may take of element j of the pack, where `rest` stages are still to come.
  template <int rest>
  __device__ __forceinline__ void element(int j, Number* v) const {
    each<Functor::kept_from>([&](auto place) {
      if constexpr (place < inputs && Inputs::kind[place < inputs ? place : 0] != Kind::row) {
        v[place] = to_number(from[place].value[j]);
      } else {
        v[place] = values[place];
      }
    });
    keep<rest>(functor.stages, v);
  }
  template <int rest>
  __device__ __forceinline__ void keep(const detail::Chain<>&, Number*) const {}
  template <int rest, class Stage, class... Later>
  __device__ __forceinline__ void keep(const detail::Chain<Stage, Later...>& chain, Number* v) const {
    if constexpr (1 + int(sizeof...(Later)) > rest) {
      if constexpr (!Stage::Terms::is_none) {
        const auto y = chain.first.terms(v);
        each<decltype(y)::count - Stage::count>([&](auto k) { v[Stage::kept_at + k] = y.value[Stage::count + k]; });
      }
      keep<rest>(chain.rest, v);
    }
  }

  __device__ __forceinline__ void run(const detail::Chain<>&) {}
  template <class Stage, class... Later>
  __device__ __forceinline__ void run(const detail::Chain<Stage, Later...>& chain) {
    if constexpr (!Stage::Terms::is_none) reduce<1 + int(sizeof...(Later))>(chain.first);
    if constexpr (!Stage::Follows::is_none) {
      const auto y = chain.first.follows(values);
      each<decltype(y)::count>([&](auto i) { values[Stage::row_at + i] = y.value[i]; });
    }
    run(chain.rest);
  }

  template <int rest, class Stage>
  __device__ __forceinline__ void reduce(const Stage& stage) {
    constexpr int count = Stage::count, leaf = 64 / Pack::size;
    const bool is_long = cut.packs > leaf * cut.lanes;
    Number result[count];
    double wide[count];
    each<count>([&](auto r) {
      result[r] = identity<Stage::reduction[r], Number>();
      wide[r] = 0;
    });
    const auto in_double = [&] {
      each<count>([&](auto r) {
        if constexpr (Stage::reduction[r] == Reduction::sum) {
          wide[r] += result[r];
          result[r] = 0;
        }
      });
    };
    int turn = 0;
    for (int pack = lane; pack < cut.packs; pack += cut.lanes) {
      read_pack(pack);
      const int size = size_of(pack);
#pragma unroll
      for (int j = 0; j < Pack::size; ++j) {
        Number v[Functor::all];
        element<rest>(j, v);
        const auto y = stage.terms(v);
        each<count>([&](auto r) {
          constexpr Reduction reduction = Stage::reduction[r];
          const Number term = j < size ? y.value[r] : identity<reduction, Number>();
          result[r] = combined<reduction>(result[r], term);
        });
      }
      if (is_long && ++turn % leaf == 0) in_double();
    }
    if (is_long) {
      in_double();
      each<count>([&](auto r) {
        if constexpr (Stage::reduction[r] == Reduction::sum) result[r] = Number(wide[r]);
      });
    }
    join<Stage>(result);
    each<count>([&](auto r) { values[Stage::reduced_at + r] = result[r]; });
  }

  // What each lane of the group has, reduced, in each lane.
  template <class Stage>
  __device__ __forceinline__ void join(Number (&result)[Stage::count]) {
    for (int distance = min(cut.lanes, warp) / 2; distance > 0; distance /= 2) {
      const bool is_upper = lane & distance;
      each<Stage::count>([&](auto r) {
        constexpr Reduction reduction = Stage::reduction[r];
        const Number mine = result[r], other = __shfl_xor_sync(whole_warp, mine, distance);
        result[r] = is_upper ? combined<reduction>(other, mine) : combined<reduction>(mine, other);
      });
    }
    if (cut.lanes <= warp) return;
    __shared__ Number of_warps[row_threads / warp][Stage::count];
    each<Stage::count>([&](auto r) {
      if (lane % warp == 0) of_warps[lane / warp][r] = result[r];
    });
    __syncthreads();
    each<Stage::count>([&](auto r) {
      result[r] = of_warps[0][r];
#pragma unroll
      for (int w = 1; w < row_threads / warp; ++w) {
        result[r] = combined<Stage::reduction[r]>(result[r], of_warps[w][r]);
      }
    });
    __syncthreads();
  }

  // Writes the outputs, if there is such a row, and adds to sums, which begin with the first row of the group.
  __device__ __forceinline__ void end(bool is_row, bool is_first) {
    if constexpr (!Functor::Elements::is_none) {
      for (int pack = lane; pack < cut.packs; pack += cut.lanes) {
        read_pack(pack);
        const int size = is_row ? size_of(pack) : 0;
        add_to(pack, is_first);
        Pack to[outputs];
#pragma unroll
        for (int j = 0; j < Pack::size; ++j) {
          Number v[Functor::all];
          element<0>(j, v);
          const auto y = functor.elements(v);
          each<decltype(y)::count>([&](auto n) {
            constexpr int k = Outputs::of_elements(n);
            if constexpr (Outputs::kind[k] == Kind::column) {
              added[Outputs::columns_before(k)][j] += j < size ? y.value[n] : Number(0);
            } else {
              assign(to[k].value[j], y.value[n]);
            }
          });
        }
        each<outputs>([&](auto k) {
          if constexpr (Outputs::kind[k] == Kind::element) {
            T* const begin = at[k] + int64_t(pack) * Pack::size;
            if (packed.value[k]) {
              if (is_row) *reinterpret_cast<Pack*>(begin) = to[k];
            } else {
#pragma unroll
              for (int j = 0; j < Pack::size; ++j) {
                if (j < size) begin[j] = to[k].value[j];
              }
            }
          }
        });
      }
    }
    if (!is_row || lane != 0) return;
    each<Functor::RowOutputs::count>([&](auto r) {
      constexpr int k = Outputs::of_rows(r), place = Functor::RowOutputs::place[r];
      assign(*at[k], values[place]);
    });
  }

  // Sums over rows are in registers for one pack, and in memory for the others.
  __device__ __forceinline__ void add_to(int pack, bool is_first) {
    if (columns == 0 || pack == adding) return;
    put_sums();
    adding = pack;
    each<columns>([&](auto c) {
#pragma unroll
      for (int j = 0; j < Pack::size; ++j) added[c][j] = is_first ? Number(0) : *sum(c, j);
    });
  }
  __device__ __forceinline__ void put_sums() const {
    if (adding < 0) return;
    each<columns>([&](auto c) {
#pragma unroll
      for (int j = 0; j < Pack::size; ++j) *sum(c, j) = added[c][j];
    });
  }
  __device__ __forceinline__ Number* sum(int column, int j) const {
    return sums + (int64_t(column) * cut.packs + adding) * Pack::size + j;
  }
};

// Each group computes rows_a_group rows. Puts the sums over the rows of the block to sums [blocks, groups, ...], those
// of its first group.
template <class S>
__device__ __forceinline__ void loop_over_rows(const typename S::Data& data, const typename S::Steps& steps,
                                               const typename S::Packed& packed, const typename S::Loop& loop,
                                               const typename S::Numbers& numbers, const RowCut& cut,
                                               typename S::Number* sums) {
  const typename S::Functor functor(numbers.value);
  const int groups = row_threads / cut.lanes, group = int(threadIdx.x) / cut.lanes;
  const int64_t sums_of_a_group = int64_t(S::columns) * cut.packs * S::Pack::size;
  typename S::Number* const of_block = sums + int64_t(blockIdx.x) * groups * sums_of_a_group;
  RowLane<S> lane{functor, data, steps, packed, loop, cut, of_block + group * sums_of_a_group};
  int64_t first = int64_t(blockIdx.x) * groups * cut.rows_a_group;
  for (int i = 0; i < cut.rows_a_group && first < cut.rows; ++i, first += groups) {
    const int64_t row = first + group;
    lane.begin(min(row, cut.rows - 1));  // all lanes of a warp take part in its reductions
    lane.run(functor.stages);
    lane.end(row < cut.rows, i == 0);
  }
  if constexpr (S::columns > 0) {
    lane.put_sums();
    __syncthreads();
    for (int half = groups / 2; half > 0; half /= 2) {
      for (int64_t i = threadIdx.x; i < half * sums_of_a_group; i += row_threads) {
        of_block[i] += of_block[i + half * sums_of_a_group];
      }
      __syncthreads();
    }
  }
}

// The sums of all blocks: a block for a warp of columns' elements, each warp of it adds some of the parts.
template <class S>
__device__ __forceinline__ void sum_blocks(const typename S::Data& data, const RowCut& cut,
                                           const typename S::Number* sums, int64_t blocks) {
  constexpr int strands = sum_threads / warp;
  __shared__ double of_strands[strands][warp];
  const int strand = int(threadIdx.x) / warp, lane = int(threadIdx.x) % warp;
  const int64_t i = int64_t(blockIdx.x) * warp + lane, column = i / cut.length, j = i % cut.length;
  const int64_t row = int64_t(cut.packs) * S::Pack::size, of_a_block = row_threads / cut.lanes * S::columns * row;
  double sum = 0;
  for (int64_t block = strand; column < S::columns && block < blocks; block += strands) {
    sum += sums[block * of_a_block + column * row + j];
  }
  of_strands[strand][lane] = sum;
  __syncthreads();
  if (strand != 0) return;
  for (int s = 1; s < strands; ++s) sum += of_strands[s][lane];
  each<S::outputs>([&](auto k) {
    if constexpr (S::Outputs::kind[k] == Kind::column) {
      if (column == S::Outputs::columns_before(k)) assign(data.value[k][j], typename S::Number(sum));
    }
  });
}

}  // namespace torchad_ext

// The kernels of a functor of rows, to which rowwise.cpp gives these arguments.
#define TORCHAD_EXT_ROW_KERNEL(name, functor, numbers, dtype)                                                      \
  namespace torchad_ext::name {                                                                                    \
  using S = RowSignature<functor, numbers, Dtype::dtype>;                                                          \
  extern "C" __global__ void __launch_bounds__(row_threads, 2) name##_rows(S::Data data, S::Steps steps,           \
                                                                           S::Packed packed, S::Loop loop,         \
                                                                           S::Numbers given, RowCut cut,           \
                                                                           S::Number* sums) {                      \
    loop_over_rows<S>(data, steps, packed, loop, given, cut, sums);                                                \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(sum_threads) name##_sums(S::Data data, RowCut cut, S::Number* sums, \
                                                                        int64_t blocks) {                          \
    sum_blocks<S>(data, cut, sums, blocks);                                                                        \
  }                                                                                                                \
  }
