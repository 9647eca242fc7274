// The CPU loops over long rows: a vector of the elements of one at a time.
#pragma once

#include "rowwise_cpu.h"

namespace torchad_ext {

// Zeros, without the header of std::vector, which takes as long to read as all of these.
template <class T>
struct Memory {
  T* const data;
  explicit Memory(int64_t count) : data(new T[count]()) {}
  Memory(const Memory&) = delete;
  ~Memory() { delete[] data; }
};

// Some rows. A value of the row is in some lanes of a vector: what is slow, a root, a division, is computed for all
// rows at once.
template <class Functor, class T>
struct LongRows : RowsCpu<Functor, T> {
  using Base = RowsCpu<Functor, T>;
  using C = typename Base::C;
  using Inputs = typename Base::Inputs;
  using Outputs = typename Base::Outputs;
  using V = typename Base::V;
  static constexpr int width = Base::width, inputs = Base::inputs, outputs = Base::outputs, columns = Base::columns;
  static constexpr bool is_short = false;
  static constexpr int together = 4;  // vectors of elements in one turn of a loop
  // Rows over which a sum stays in registers; of 16, as with AVX2, a sum over several rows takes too many.
  static constexpr int summed = sizeof(V) == 32 ? 1 : width;
  static constexpr int64_t leaf = 32;      // turns of a loop that sums in one order
  static constexpr int64_t cache = 24576;  // bytes that stay in the first cache from pass to pass
  const Functor& functor;
  const Rows& rows;
  const int64_t length = rows.length, padded = (length + width - 1) / width * width;
  const bool cached = !Base::is_uncached(rows, length % width == 0);
  const int at_once = rows_at_once(length), share = width / at_once;  // rows, and the lanes of each
  const Memory<C> scratch{(at_once * Functor::kept + columns) * padded};
  C* const sums = scratch.data + at_once * Functor::kept * padded;
  // How far ahead the rows to come are asked for while results are written. Those of one operand, if they are short,
  // come in time by themselves.
  const int64_t ahead = Base::read > 1 || length >= 8 * width ? at_once * length : 0;
  const Memory<T> repeated{rows_repeated(rows) * at_once * padded};
  const T* from[inputs][width] = {};
  const T* number[inputs][width] = {};  // which a row of equal elements is made of
  T* to[outputs] = {};
  int count = 0;

  LongRows(const Functor& functor, const Rows& rows) : functor(functor), rows(rows) {}

  static constexpr bool is_row(int input) { return Inputs::kind[input] == Kind::row; }
  static constexpr bool is_of_row(int place) { return place >= inputs || is_row(place < inputs ? place : 0); }

  static int rows_at_once(int64_t length) {
    const int64_t read = length * (sizeof(C) * Functor::kept + sizeof(T) * Base::read);
    int some = width;
    while (some > 1 && some * read > cache) some /= 2;
    return some;
  }
  // Operands with one number in all elements of a row, which is written out.
  static int rows_repeated(const Rows& rows) {
    int some = 0;
    for (int k = 0; k < inputs; ++k) some += !is_row(k) && rows.steps[outputs + k] == 0;
    return some;
  }

  TORCHAD_EXT_INLINE void begin(int64_t row, int some, V* values) {
    count = some;
    T* free = repeated.data;
    each<inputs>([&](auto k) {
      const T* const data = static_cast<const T*>(rows.data[outputs + k]);
      if constexpr (is_row(k)) {
        if (count == width && rows.strides[outputs + k] == nullptr && rows.row_strides[outputs + k] == 1) {
          values[k] = load(data + row);
          return;
        }
        T gathered[width];  // the last row in the lanes that are left
        for (int p = 0; p < at_once; ++p) {
          fill(gathered + p * share, share, data[rows.offset(outputs + k, row + least(p, count - 1))]);
        }
        values[k] = load(gathered);
      } else {
        const bool repeats = rows.steps[outputs + k] == 0;
        for (int p = 0; p < count; ++p) {
          const T* const at = data + rows.offset(outputs + k, row + p);
          from[k][p] = repeats ? free + p * padded : at;
          if (!repeats || number[k][p] == at) continue;
          fill(free + p * padded, length, *at);
          number[k][p] = at;
        }
        if (repeats) free += at_once * padded;
      }
    });
    each<outputs>([&](auto k) {
      T* const data = static_cast<T*>(rows.data[k]);
      to[k] = data == nullptr ? data : data + row * rows.row_strides[k];
    });
  }

  // One row: where its elements are, and its values, those that a part takes, in every lane.
  struct Row {
    const T* from[inputs];
    T* to[outputs];
    C* kept[Functor::kept + 1];
    V values[Functor::kept_from];
  };
  template <class Part>
  TORCHAD_EXT_INLINE Row row(const V* values, int p) const {
    Row row;
    each<Functor::kept_from>([&](auto place) {
      if constexpr (Part::takes(place) || (place < inputs && !is_of_row(place))) {
        if constexpr (is_of_row(place)) {
          row.values[place] = all_lanes<V>(values[place][p * share]);
        } else {
          row.from[place] = from[place][p];
        }
      }
    });
    each<Functor::kept>([&](auto k) { row.kept[k] = scratch.data + (k * at_once + p) * padded; });
    each<outputs>([&](auto k) { row.to[k] = to[k] + p * length; });
    return row;
  }

  // A part of elements from i on.
  template <bool whole, class Part>
  static TORCHAD_EXT_INLINE auto computed(const Part& part, const Row& row, int64_t i, int64_t some) {
    V v[Functor::all];
    each<Functor::all>([&](auto place) {
      if constexpr (Part::takes(place)) {
        if constexpr (place >= Functor::kept_from) {
          v[place] = load(row.kept[place - Functor::kept_from] + i);
        } else if constexpr (is_of_row(place)) {
          v[place] = row.values[place];
        } else {
          v[place] = whole ? load(row.from[place] + i) : load_some(row.from[place] + i, some);
        }
      }
    });
    return part(v);
  }

  template <bool whole, class Stage>
  static TORCHAD_EXT_INLINE void add(const Stage& stage, const Row& row, int64_t i, int64_t some, V* sum) {
    const auto y = computed<whole>(stage.terms, row, i, some);
    each<Stage::count>([&](auto r) {
      using R = Reduce<Stage::reduction[r]>;
      V term = y.value[r];
      if constexpr (!whole) term = before<V>(some) ? term : R::template identity<V>();
      sum[r] = R::combine(sum[r], term);
    });
    each<y.count - Stage::count>(
        [&](auto k) { store(row.kept[Stage::kept_at - Functor::kept_from + k] + i, y.value[Stage::count + k]); });
  }

  template <class Stage>
  static constexpr int chains = Stage::count <= 2   ? 4
                                : Stage::count <= 4 ? 2
                                                    : 1;

  // Elements [begin, end) of a row reduced in each lane.
  template <class Stage>
  static TORCHAD_EXT_INLINE void reduce_some(const Stage& stage, const Row& row, int64_t begin, int64_t end,
                                             V* result) {
    constexpr int chains = LongRows::chains<Stage>;
    V sum[chains][Stage::count], rest[Stage::count];
    each<Stage::count>([&](auto r) {
      rest[r] = Reduce<Stage::reduction[r]>::template identity<V>();
      each<chains>([&](auto c) { sum[c][r] = rest[r]; });
    });
    int64_t i = begin;
    for (; i + chains * width <= end; i += chains * width) {
      each<chains>([&](auto c) { add<true>(stage, row, i + c * width, width, sum[c]); });
    }
    for (; i + width <= end; i += width) add<true>(stage, row, i, width, rest);
    if (i < end) add<false>(stage, row, i, end - i, rest);
    each<Stage::count>([&](auto r) {
      result[r] = rest[r];
      each<chains>([&](auto c) { result[r] = Reduce<Stage::reduction[r]>::combine(result[r], sum[c][r]); });
    });
  }

  // A row reduced in each lane, long ones as sums of sums, so that rounding errors grow as log(n).
  template <class Stage>
  static TORCHAD_EXT_INLINE void reduce_row(const Stage& stage, const Row& row, int64_t n, V* result) {
    constexpr int64_t range = leaf * chains<Stage> * width;
    const auto combine = [](V* a, const V* b) {
      each<Stage::count>([&](auto r) { a[r] = Reduce<Stage::reduction[r]>::combine(a[r], b[r]); });
    };
    V sums[64][Stage::count];  // of 2^k ranges each, the largest first
    int depth = 0;
    for (int64_t begin = 0, ranges = 1; begin < n; begin += range, ++ranges) {
      reduce_some(stage, row, begin, least(n, begin + range), sums[depth++]);
      for (int64_t odd = ranges; odd % 2 == 0; odd /= 2, --depth) combine(sums[depth - 2], sums[depth - 1]);
    }
    for (; depth > 1; --depth) combine(sums[depth - 2], sums[depth - 1]);
    each<Stage::count>([&](auto r) { result[r] = sums[0][r]; });
  }

  template <class Stage>
  TORCHAD_EXT_INLINE void reduce(const Stage& stage_, const V* values, V* result) const {
    const auto stage = stage_;  // a store may change what is not local
    const int64_t n = length;
    V lanes[Stage::count][width];
    for (int p = 0; p < count; ++p) {
      const Row row = this->row<typename Stage::Terms>(values, p);
      V sum[Stage::count];
      reduce_row(stage, row, n, sum);
      each<Stage::count>([&](auto r) { lanes[r][p] = sum[r]; });
    }
    each<Stage::count>([&](auto r) {
      fill(lanes[r] + count, at_once - count, lanes[r][0]);
      result[r] = across<Stage::reduction[r], width>(lanes[r]);
    });
  }
  template <Reduction reduction, int rows>
  V across(const V* lanes) const {
    using R = Reduce<reduction>;
    if constexpr (rows > 1) {
      if (at_once < rows) return across<reduction, rows / 2>(lanes);
    }
    return R::template across<width / rows / 2>(R::template across_each<rows>(lanes));
  }

  // Vectors of elements from i on; outputs that are summed over the rows are added to `sum`.
  template <int vectors, bool whole>
  static TORCHAD_EXT_INLINE void write(const typename Functor::Elements& elements, const Row& row, int64_t i,
                                       int64_t some, int64_t ahead, bool cached, V (*sum)[vectors]) {
    each<vectors>([&](auto j) {
      const int64_t at = i + j * width;
      each<inputs>([&](auto k) {
        if constexpr (Inputs::kind[k] == Kind::element) {
          if (ahead) __builtin_prefetch(row.from[k] + at + ahead);
        }
      });
      const auto y = computed<whole>(elements, row, at, some);
      each<y.count>([&](auto n) {
        constexpr int k = Outputs::of_elements(n);
        if constexpr (Outputs::kind[k] == Kind::column) {
          sum[Outputs::columns_before(k)][j] += y.value[n];
        } else if constexpr (!whole) {
          store_some(row.to[k] + at, y.value[n], some);
        } else {
          cached ? store(row.to[k] + at, y.value[n]) : store_uncached(row.to[k] + at, y.value[n]);
        }
      });
    });
  }

  // The same elements of some rows from `first` on, whose sums over these rows are in registers.
  template <int vectors, bool whole>
  TORCHAD_EXT_INLINE void write_rows(const typename Functor::Elements& elements, const V* values, int first, int64_t i,
                                     int64_t some) const {
    V sum[columns][vectors];
    each<columns>([&](auto c) { each<vectors>([&](auto j) { sum[c][j] = load(sums + c * padded + i + j * width); }); });
    const int64_t ahead = this->ahead;
    const bool cached = this->cached;
    for (int p = first; p < first + summed && p < count; ++p) {
      write<vectors, whole>(elements, this->row<typename Functor::Elements>(values, p), i, some, ahead, cached, sum);
    }
    each<columns>([&](auto c) { each<vectors>([&](auto j) { store(sums + c * padded + i + j * width, sum[c][j]); }); });
  }

  TORCHAD_EXT_INLINE void end(const V* values) const {
    if constexpr (!Functor::Elements::is_none) {
      const auto elements = functor.elements;
      const int64_t n = length, ahead = this->ahead;
      const bool cached = this->cached;
      if constexpr (columns > 0) {
        for (int p = 0; p < count; p += summed) {
          int64_t i = 0;
          for (; i + together * width <= n; i += together * width)
            write_rows<together, true>(elements, values, p, i, 0);
          for (; i + width <= n; i += width) write_rows<1, true>(elements, values, p, i, 0);
          if (i < n) write_rows<1, false>(elements, values, p, i, n - i);
        }
      } else {
        for (int p = 0; p < count; ++p) {
          const Row row = this->row<typename Functor::Elements>(values, p);
          int64_t i = 0;
          for (; i + together * width <= n; i += together * width) {
            write<together, true>(elements, row, i, 0, ahead, cached, nullptr);
          }
          for (; i + width <= n; i += width) write<1, true>(elements, row, i, 0, ahead, cached, nullptr);
          if (i < n) write<1, false>(elements, row, i, n - i, ahead, cached, nullptr);
        }
      }
    }
    each<Functor::RowOutputs::count>([&](auto r) {
      const V value = values[Functor::RowOutputs::place[r]];
      T* const at = to[Outputs::of_rows(r)];
      if (at == nullptr) return;
      if (share == 1) return store_some(at, value, count);
      T spread[width];
      store(spread, value);
      for (int p = 0; p < count; ++p) at[p] = spread[p * share];
    });
  }

  static TORCHAD_EXT_FLAT void run(const Rows& rows, const double* scalars, int64_t begin, int64_t end, double* sums) {
    const Functor functor(scalars);
    LongRows some(functor, rows);
    V values[Functor::all];
    for (int64_t row = begin; row < end; row += some.at_once) {
      const int count = int(least(some.at_once, end - row));
      some.begin(row, count, values);
      Base::stages(functor.stages, values, some);
      some.end(values);
      if (columns == 0 || ((row - begin + count) % Base::rows_a_block != 0 && row + count < end)) continue;
      for (int c = 0; c < columns; ++c) {
        C* sum = some.sums + c * some.padded;
        for (int64_t j = 0; j < rows.length; ++j) sums[c * rows.length + j] += sum[j];
        fill(sum, some.padded, C(0));
      }
    }
    if (!some.cached) store_fence();
  }
};

}  // namespace torchad_ext
