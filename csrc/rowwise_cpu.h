// The CPU loops over rows: any functor of rows, a vector of elements of one row at a time, or of many short rows.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"
#include "pointwise_cpu.h"
#include "rowwise.h"

namespace torchad_ext {

// With only_wide no row is shorter than `shortest`.
template <class Functor, class T, bool only_wide = false>
struct RowsCpu {
  using Inputs = typename Functor::Inputs;
  using Outputs = typename Functor::Outputs;
  using C = compute_t<T>;
  using V = Vector<C>;
  static constexpr int width = lanes<T>;
  static constexpr int inputs = Inputs::count, outputs = Outputs::count;
  static constexpr int shortest = 17;      // a shorter row is computed beside others, one in each lane
  static constexpr int rows_a_block = 64;  // whose sums over rows are made in the type that is computed in

  static constexpr int columns = Outputs::count_of(Kind::column);

  template <int n, class F>
  static TORCHAD_EXT_INLINE void each(F f) {
    each_of(f, std::make_integer_sequence<int, n>{});
  }
  template <class F, int... i>
  static TORCHAD_EXT_INLINE void each_of([[maybe_unused]] F f, std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
  }

  // The stages of as many rows as a vector has lanes, from the values of each, one a lane, and passes over elements.
  template <class Pass, class Chain>
  static TORCHAD_EXT_INLINE void stages(const Chain& chain, V* values, const Pass& pass) {
    if constexpr (Chain::count > 0) {
      const auto& stage = chain.first;
      using Stage = std::decay_t<decltype(stage)>;
      if constexpr (!Stage::Terms::is_none) pass.reduce(stage, values, values + Stage::reduced_at);
      if constexpr (!Stage::Follows::is_none) {
        const auto y = stage.follows(values);
        each<y.count>([&](auto i) { values[Stage::row_at + i] = y.value[i]; });
      }
      stages(chain.rest, values, pass);
    }
  }

  // Some rows, a vector of the elements of one at a time. A value of the row is in some lanes of a vector: what is
  // slow, a root, a division, is computed for all rows at once.
  struct Wide {
    static constexpr int together = 4;       // vectors of elements in one turn of a loop
    static constexpr int64_t leaf = 32;      // turns of a loop that sums in one order
    static constexpr int64_t cache = 32768;  // bytes that stay in the first cache from pass to pass
    static constexpr int64_t stores = 4096;  // bytes that leave for memory while others are computed
    const Functor& functor;
    const Rows& rows;
    const int64_t length = rows.length, padded = (length + width - 1) / width * width;
    const bool cached = !is_uncached(rows);
    const int at_once = rows_at_once(length), share = width / at_once;  // rows, and the lanes of each
    std::vector<C> scratch = std::vector<C>((at_once * Functor::kept + columns) * padded);
    C* const sums = scratch.data() + at_once * Functor::kept * padded;
    std::vector<T> repeated = std::vector<T>(rows_repeated(rows) * at_once * padded);
    const T* from[inputs][width] = {};
    const T* number[inputs][width] = {};  // which a row of equal elements is made of
    T* to[outputs] = {};
    int count = 0;

    static constexpr bool is_row(int input) { return Inputs::kind[input] == Kind::row; }
    static constexpr bool is_of_row(int place) { return place >= inputs || is_row(place < inputs ? place : 0); }

    static int rows_at_once(int64_t length) {
      int64_t read = length * sizeof(C) * Functor::kept, written = 0;
      for (int k = 0; k < inputs; ++k) read += Inputs::kind[k] == Kind::element ? length * sizeof(T) : 0;
      for (int k = 0; k < outputs; ++k) written += Outputs::kind[k] == Kind::element ? length * sizeof(T) : 0;
      int some = width;
      while (some > 1 && (some * read > cache || (some > 4 && some * written > stores))) some /= 2;
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
      T* free = repeated.data();
      each<inputs>([&](auto k) {
        const T* const data = static_cast<const T*>(rows.data[outputs + k]);
        if constexpr (is_row(k)) {
          if (count == width && rows.strides[outputs + k] == nullptr && rows.row_strides[outputs + k] == 1) {
            values[k] = load(data + row);
            return;
          }
          T gathered[width];  // the last row in the lanes that are left
          for (int p = 0; p < at_once; ++p) {
            std::fill_n(gathered + p * share, share, data[rows.offset(outputs + k, row + std::min(p, count - 1))]);
          }
          values[k] = load(gathered);
        } else {
          const bool repeats = rows.steps[outputs + k] == 0;
          for (int p = 0; p < count; ++p) {
            const T* const at = data + rows.offset(outputs + k, row + p);
            from[k][p] = repeats ? free + p * padded : at;
            if (!repeats || number[k][p] == at) continue;
            std::fill_n(free + p * padded, length, *at);
            number[k][p] = at;
          }
          if (repeats) free += at_once * padded;
        }
      });
      each<outputs>([&](auto k) { to[k] = static_cast<T*>(rows.data[k]) + row * rows.row_strides[k]; });
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
        if constexpr (Part::takes(place)) {
          if constexpr (is_of_row(place)) {
            row.values[place] = all_lanes<V>(values[place][p * share]);
          } else {
            row.from[place] = from[place][p];
          }
        }
      });
      each<Functor::kept>([&](auto k) { row.kept[k] = const_cast<C*>(scratch.data()) + (k * at_once + p) * padded; });
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
      constexpr int chains = Wide::chains<Stage>;
      V sum[chains][Stage::count];
      each<chains>([&](auto c) {
        each<Stage::count>([&](auto r) { sum[c][r] = Reduce<Stage::reduction[r]>::template identity<V>(); });
      });
      int64_t i = begin;
      for (; i + chains * width <= end; i += chains * width) {
        each<chains>([&](auto c) { add<true>(stage, row, i + c * width, width, sum[c]); });
      }
      for (; i + width <= end; i += width) add<true>(stage, row, i, width, sum[0]);
      if (i < end) add<false>(stage, row, i, end - i, sum[chains - 1]);
      for (int c = chains / 2; c > 0; c /= 2) {
        for (int j = 0; j < c; ++j) {
          each<Stage::count>(
              [&](auto r) { sum[j][r] = Reduce<Stage::reduction[r]>::combine(sum[j][r], sum[j + c][r]); });
        }
      }
      each<Stage::count>([&](auto r) { result[r] = sum[0][r]; });
    }

    // Long ranges by halves, so that rounding errors grow as log(n).
    template <class Stage>
    static void reduce_halves(const Stage& stage, const Row& row, int64_t begin, int64_t end, V* result) {
      constexpr int64_t step = chains<Stage> * width;
      if (end - begin <= leaf * step) return reduce_some(stage, row, begin, end, result);
      const int64_t middle = begin + (end - begin) / 2 / step * step;
      V right[Stage::count];
      reduce_halves(stage, row, begin, middle, result);
      reduce_halves(stage, row, middle, end, right);
      each<Stage::count>([&](auto r) { result[r] = Reduce<Stage::reduction[r]>::combine(result[r], right[r]); });
    }

    template <class Stage>
    TORCHAD_EXT_INLINE void reduce(const Stage& stage_, const V* values, V* result) const {
      const auto stage = stage_;  // a store may change what is not local
      const int64_t n = length;
      V lanes[Stage::count][width];
      for (int p = 0; p < count; ++p) {
        const Row row = this->row<typename Stage::Terms>(values, p);
        V sum[Stage::count];
        if (n <= leaf * chains<Stage> * width) {
          reduce_some(stage, row, 0, n, sum);
        } else {
          reduce_halves(stage, row, 0, n, sum);
        }
        each<Stage::count>([&](auto r) { lanes[r][p] = sum[r]; });
      }
      each<Stage::count>([&](auto r) {
        std::fill(lanes[r] + count, lanes[r] + at_once, lanes[r][0]);
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
                                         int64_t some, bool cached, V (*sum)[vectors]) {
      each<vectors>([&](auto j) {
        const int64_t at = i + j * width;
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

    // The same elements of all rows, whose sums over the rows are in registers.
    template <int vectors, bool whole>
    TORCHAD_EXT_INLINE void write_all(const typename Functor::Elements& elements, const V* values, int64_t i,
                                      int64_t some) const {
      V sum[columns][vectors];
      each<columns>(
          [&](auto c) { each<vectors>([&](auto j) { sum[c][j] = load(sums + c * padded + i + j * width); }); });
      const bool cached = this->cached;
      for (int p = 0; p < count; ++p) {
        write<vectors, whole>(elements, this->row<typename Functor::Elements>(values, p), i, some, cached, sum);
      }
      each<columns>(
          [&](auto c) { each<vectors>([&](auto j) { store(sums + c * padded + i + j * width, sum[c][j]); }); });
    }

    TORCHAD_EXT_INLINE void end(const V* values) const {
      if constexpr (!Functor::Elements::is_none) {
        const auto elements = functor.elements;
        const int64_t n = length;
        const bool cached = this->cached;
        int64_t i = 0;
        if constexpr (columns > 0) {
          for (; i + together * width <= n; i += together * width) write_all<together, true>(elements, values, i, 0);
          for (; i + width <= n; i += width) write_all<1, true>(elements, values, i, 0);
          if (i < n) write_all<1, false>(elements, values, i, n - i);
        } else {
          for (int p = 0; p < count; ++p) {
            const Row row = this->row<typename Functor::Elements>(values, p);
            for (i = 0; i + width <= n; i += width) write<1, true>(elements, row, i, 0, cached, nullptr);
            if (i < n) write<1, false>(elements, row, i, n - i, cached, nullptr);
          }
        }
      }
      each<Functor::RowOutputs::count>([&](auto r) {
        const V value = values[Functor::RowOutputs::place[r]];
        if (share == 1) return store_some(to[Outputs::of_rows(r)], value, count);
        for (int p = 0; p < count; ++p) store_some(to[Outputs::of_rows(r)] + p, all_lanes<V>(value[p * share]), 1);
      });
    }
  };

  static void run_wide(const Functor& functor, const Rows& rows, int64_t begin, int64_t end, double* sums) {
    Wide some{functor, rows};
    V values[Functor::all];
    for (int64_t row = begin; row < end; row += some.at_once) {
      const int count = int(std::min<int64_t>(some.at_once, end - row));
      some.begin(row, count, values);
      stages(functor.stages, values, some);
      some.end(values);
      if (columns == 0 || ((row - begin + count) % rows_a_block != 0 && row + count < end)) continue;
      for (int c = 0; c < columns; ++c) {
        C* sum = some.sums + c * some.padded;
        for (int64_t j = 0; j < rows.length; ++j) sums[c * rows.length + j] += sum[j];
        std::fill_n(sum, some.padded, C(0));
      }
    }
    if (!some.cached) store_fence();
  }

  // As many short rows as a vector has lanes, of a length that is known to the compiler, or 0.
  template <int fixed>
  struct Short {
    static constexpr int most = fixed ? fixed : shortest - 1;
    const Functor& functor;
    int64_t length;
    V from[inputs][most];
    mutable V kept[Functor::kept + 1][most];

    TORCHAD_EXT_INLINE int64_t n() const { return fixed ? fixed : length; }

    template <class Part>
    TORCHAD_EXT_INLINE void fetch(V* v, const V* values, int64_t j) const {
      each<Functor::all>([&](auto place) {
        if constexpr (Part::takes(place)) {
          if constexpr (place >= Functor::kept_from) {
            v[place] = kept[place - Functor::kept_from][j];
          } else if constexpr (place >= inputs || Inputs::kind[place < inputs ? place : 0] == Kind::row) {
            v[place] = values[place];
          } else {
            v[place] = from[place][j];
          }
        }
      });
    }

    template <class Stage>
    TORCHAD_EXT_INLINE void reduce(const Stage& stage, const V* values, V* result) const {
      V reduced[Stage::count];
      each<Stage::count>([&](auto r) { reduced[r] = Reduce<Stage::reduction[r]>::template identity<V>(); });
      TORCHAD_EXT_UNROLL
      for (int j = 0; j < n(); ++j) {
        V v[Functor::all];
        fetch<typename Stage::Terms>(v, values, j);
        const auto y = stage.terms(v);
        each<Stage::count>([&](auto r) { reduced[r] = Reduce<Stage::reduction[r]>::combine(reduced[r], y.value[r]); });
        each<y.count - Stage::count>(
            [&](auto k) { kept[Stage::kept_at - Functor::kept_from + k][j] = y.value[Stage::count + k]; });
      }
      each<Stage::count>([&](auto r) { result[r] = reduced[r]; });
    }
  };

  template <int fixed>
  static void run_short(const Functor& functor, const Rows& rows, int64_t begin, int64_t end, double* sums) {
    using Rows_ = Short<fixed>;
    Rows_ some{functor, rows.length, {}, {}};
    const int64_t n = some.n();
    const bool cached = !is_uncached(rows) || begin % width != 0;
    V sum[columns + 1][Rows_::most] = {};
    T gathered[width];
    each<inputs>([&](auto k) {
      if (Inputs::kind[k] != Kind::column) return;
      const T* data = static_cast<const T*>(rows.data[outputs + k]);
      for (int64_t j = 0; j < n; ++j) {
        std::fill_n(gathered, width, data[j * rows.steps[outputs + k]]);
        some.from[k][j] = load(gathered);
      }
    });
    int64_t blocks = 0;
    for (int64_t row = begin; row < end; row += width) {
      const int64_t count = std::min<int64_t>(width, end - row);
      V values[Functor::all];
      each<inputs>([&](auto k) {
        if constexpr (Inputs::kind[k] == Kind::column) return;
        const T* data = static_cast<const T*>(rows.data[outputs + k]) + rows.offset(outputs + k, row);
        const bool even = count == width && rows.strides[outputs + k] == nullptr;
        const int64_t stride = rows.row_strides[outputs + k];
        constexpr bool of_rows = Inputs::kind[k] == Kind::row;
        const int64_t step = rows.steps[outputs + k];
        if constexpr (!of_rows && fixed != 0) {
          if (even && stride == n && step == 1) {
            V dense[fixed];
            for (int s = 0; s < fixed; ++s) dense[s] = load(data + s * width);
            Transposed<fixed, width>::gather(dense, some.from[k]);
            return;
          }
        }
        if (of_rows && even && stride == 1) {
          values[k] = load(data);
          return;
        }
        int64_t at[width];  // the last row in the lanes that are left
        for (int64_t i = 0; i < width; ++i) {
          at[i] = even ? i * stride
                       : rows.offset(outputs + k, row + std::min(i, count - 1)) - rows.offset(outputs + k, row);
        }
        for (int64_t j = 0; j < (of_rows ? 1 : n); ++j) {
          for (int64_t i = 0; i < width; ++i) gathered[i] = data[at[i] + j * step];
          some.from[k][j] = load(gathered);
        }
        if constexpr (of_rows) values[k] = some.from[k][0];
      });
      stages(functor.stages, values, some);
      if constexpr (!Functor::Elements::is_none) {
        constexpr int given = decltype(functor.elements(values))::count;
        V written[given][Rows_::most];
        TORCHAD_EXT_UNROLL
        for (int j = 0; j < n; ++j) {
          V v[Functor::all];
          some.template fetch<typename Functor::Elements>(v, values, j);
          const auto y = functor.elements(v);
          each<given>([&](auto e) {
            constexpr int k = Outputs::of_elements(e);
            if constexpr (Outputs::kind[k] == Kind::column) {
              sum[Outputs::columns_before(k)][j] += count == width ? y.value[e] : before<V>(count) ? y.value[e] : V{};
            } else {
              written[e][j] = y.value[e];
            }
          });
        }
        each<given>([&](auto e) {
          constexpr int k = Outputs::of_elements(e);
          if constexpr (Outputs::kind[k] == Kind::element) {
            T* to = static_cast<T*>(rows.data[k]) + row * n;
            if constexpr (fixed != 0) {
              if (count == width) {
                V dense[fixed];
                Transposed<fixed, width>::scatter(written[e], dense);
                for (int s = 0; s < fixed; ++s) {
                  cached ? store(to + s * width, dense[s]) : store_uncached(to + s * width, dense[s]);
                }
                return;
              }
            }
            for (int64_t j = 0; j < n; ++j) {
              store(gathered, written[e][j]);
              for (int64_t i = 0; i < count; ++i) to[i * n + j] = gathered[i];
            }
          }
        });
      }
      each<Functor::RowOutputs::count>([&](auto r) {
        constexpr int k = Outputs::of_rows(r);
        store_some(static_cast<T*>(rows.data[k]) + row, values[Functor::RowOutputs::place[r]], count);
      });
      if (columns == 0 || (++blocks % rows_a_block != 0 && row + width < end)) continue;
      for (int c = 0; c < columns; ++c) {
        for (int64_t j = 0; j < n; ++j) {
          for (int i = 0; i < width; ++i) sums[c * n + j] += sum[c][j][i];
          sum[c][j] = V{};
        }
      }
    }
    if (!cached) store_fence();
  }

  // Are the outputs to pass by the caches? They are when they are large, and a vector of each is aligned.
  static bool is_uncached(const Rows& rows) {
    int of_elements = 0;
    bool aligned = rows.length < shortest || rows.length % width == 0;
    for (int k = 0; k < outputs; ++k) {
      if (Outputs::kind[k] != Kind::element) continue;
      ++of_elements;
      aligned = aligned && Cpu::until_aligned<T>(rows.data[k]) == 0;
    }
    return aligned && rows.count * rows.length * of_elements * int64_t(sizeof(T)) >= most_cached_bytes;
  }

  static void run(const Rows& rows, const double* scalars, int64_t begin, int64_t end, double* sums) {
    const Functor functor(scalars);
    if constexpr (!only_wide) {
      if (rows.length == 3) return run_short<3>(functor, rows, begin, end, sums);
      if (rows.length < shortest) return run_short<0>(functor, rows, begin, end, sums);
    }
    run_wide(functor, rows, begin, end, sums);
  }

  static void store_sum(const double* sums, int64_t count, int64_t stride, int64_t length, void* to) {
    for (int64_t j = 0; j < length; j += width) {
      const int64_t some = std::min<int64_t>(width, length - j);
      V total{};
      for (int64_t i = 0; i < some; ++i) {
        double sum = 0;
        for (int64_t c = 0; c < count; ++c) sum += sums[c * stride + j + i];
        total[i] = C(sum);
      }
      store_some(static_cast<T*>(to) + j, total, some);
    }
  }

  template <std::size_t... k, std::size_t... l>
  static constexpr auto joined(std::index_sequence<k...>, std::index_sequence<l...>) {
    struct Joined {
      Kind kind[inputs + outputs];
    };
    return Joined{{Outputs::kind[k]..., Inputs::kind[l]...}};
  }
  static constexpr auto kinds = joined(std::make_index_sequence<outputs>{}, std::make_index_sequence<inputs>{});

  static constexpr RowKernel kernel(Dtype dtype, const char* name) {
    return {{inputs, outputs, dtype, name}, kinds.kind, run, store_sum};
  }
};

}  // namespace torchad_ext

// Exports a functor of rows as a RowKernel.
#define TORCHAD_EXT_ROW_KERNEL(name, Functor, dtype, only_wide)                                            \
  extern "C" {                                                                                             \
  extern const torchad_ext::RowKernel name;                                                                \
  const torchad_ext::RowKernel name =                                                                      \
      torchad_ext::RowsCpu<Functor, torchad_ext::storage_t<torchad_ext::Dtype::dtype>, only_wide>::kernel( \
          torchad_ext::Dtype::dtype, #Functor);                                                            \
  }
