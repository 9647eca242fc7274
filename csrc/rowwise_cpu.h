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

  static constexpr int count(Kind kind) {
    int found = 0;
    for (int k = 0; k < outputs; ++k) found += Outputs::kind[k] == kind;
    return found;
  }
  static constexpr int columns = count(Kind::column);

  // Which output is the n-th that Elements gives?
  static constexpr int of_elements(int n) {
    for (int k = 0; k < outputs; ++k) {
      if (Outputs::kind[k] != Kind::row && n-- == 0) return k;
    }
    return -1;
  }
  static constexpr int of_rows(int n) {
    for (int k = 0; k < outputs; ++k) {
      if (Outputs::kind[k] == Kind::row && n-- == 0) return k;
    }
    return -1;
  }
  static constexpr int column(int output) {
    int found = 0;
    for (int k = 0; k < output; ++k) found += Outputs::kind[k] == Kind::column;
    return found;
  }

  template <int n, class F>
  static TORCHAD_EXT_INLINE void each(F f) {
    each_of(f, std::make_integer_sequence<int, n>{});
  }
  template <class F, int... i>
  static TORCHAD_EXT_INLINE void each_of([[maybe_unused]] F f, std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
  }

  // The stages of some rows, from the values of each and a pass over its elements. What is slow to arrive, a reduction
  // of lanes, a root, is computed for all of them in turn.
  template <class Pass, class Chain>
  static TORCHAD_EXT_INLINE void stages(const Chain& chain, V (*values)[Functor::all], const Pass* pass, int count) {
    if constexpr (Chain::count > 0) {
      const auto& stage = chain.first;
      using Stage = std::decay_t<decltype(stage)>;
      if constexpr (!Stage::Terms::is_none) {
        V reduced[Pass::at_once][Stage::count];
        for (int p = 0; p < count; ++p) pass[p].reduce(stage, values[p], reduced[p]);
        for (int p = 0; p < count; ++p) {
          each<Stage::count>([&](auto r) {
            values[p][Stage::reduced_at + r] = Pass::template reduced<Stage::reduction[r]>(reduced[p][r]);
          });
        }
      }
      if constexpr (!Stage::Follows::is_none) {
        for (int p = 0; p < count; ++p) {
          const auto y = stage.follows(values[p]);
          each<y.count>([&](auto i) { values[p][Stage::row_at + i] = y.value[i]; });
        }
      }
      stages(chain.rest, values, pass, count);
    }
  }

  // One row, a vector of its elements at a time.
  struct Wide {
    static constexpr int at_once = 4;
    static constexpr int64_t longest = 512;  // a longer row is computed by itself
    const Functor& functor;
    const Rows& rows;
    const T* from[inputs];
    T* to[outputs];
    C* kept[Functor::kept + 1];
    C* sums[columns + 1];
    bool cached;
    T (*repeated)[width];
    int64_t step[inputs];

    // The values of elements from i on, those that a part takes.
    template <class Part>
    TORCHAD_EXT_INLINE void fetch(V* v, const V* values, int64_t i, int64_t count) const {
      each<Functor::all>([&](auto place) {
        if constexpr (Part::takes(place)) {
          if constexpr (place >= Functor::kept_from) {
            v[place] = load(kept[place - Functor::kept_from] + i);
          } else if constexpr (place >= inputs || Inputs::kind[place < inputs ? place : 0] == Kind::row) {
            v[place] = values[place];
          } else {
            const T* at = from[place] + i * step[place];
            v[place] = count == width || step[place] == 0 ? load(at) : load_some(at, count);
          }
        }
      });
    }

    template <bool whole, class Stage>
    TORCHAD_EXT_INLINE void one(const Stage& stage, const V* values, int64_t i, int64_t count, V* sum) const {
      V v[Functor::all];
      fetch<typename Stage::Terms>(v, values, i, whole ? width : count);
      const auto y = stage.terms(v);
      each<Stage::count>([&](auto r) {
        using R = Reduce<Stage::reduction[r]>;
        V term = y.value[r];
        if constexpr (!whole) term = before<V>(count) ? term : R::template identity<V>();
        sum[r] = R::combine(sum[r], term);
      });
      each<y.count - Stage::count>(
          [&](auto k) { store(kept[Stage::kept_at - Functor::kept_from + k] + i, y.value[Stage::count + k]); });
    }

    // Elements [begin, end) reduced in each lane: long ranges by halves, so that rounding errors grow as log(n).
    template <class Stage>
    void reduce_lanes(const Stage& stage_, const V* values_, int64_t begin, int64_t end, V* result) const {
      const auto stage = stage_;  // a store may change what is not local
      const Wide self = *this;
      V values[Functor::all];
      each<Functor::all>([&](auto place) {
        if constexpr (Stage::Terms::takes(place)) values[place] = values_[place];
      });
      constexpr int chains = Stage::count <= 2 ? 4 : Stage::count <= 4 ? 2 : 1;
      constexpr int64_t step = chains * width, most = 32 * step;
      if (end - begin > most) {
        const int64_t middle = begin + (end - begin) / 2 / step * step;
        V right[Stage::count];
        reduce_lanes(stage, values_, begin, middle, result);
        reduce_lanes(stage, values_, middle, end, right);
        each<Stage::count>([&](auto r) { result[r] = Reduce<Stage::reduction[r]>::combine(result[r], right[r]); });
        return;
      }
      V sum[chains][Stage::count];
      for (int c = 0; c < chains; ++c) {
        each<Stage::count>([&](auto r) { sum[c][r] = Reduce<Stage::reduction[r]>::template identity<V>(); });
      }
      int64_t i = begin;
      for (; i + step <= end; i += step) {
        each<chains>([&](auto c) { self.template one<true>(stage, values, i + c * width, width, sum[c]); });
      }
      for (; i + width <= end; i += width) self.template one<true>(stage, values, i, width, sum[0]);
      if (i < end) self.template one<false>(stage, values, i, end - i, sum[chains - 1]);
      for (int c = chains / 2; c > 0; c /= 2) {
        for (int j = 0; j < c; ++j) {
          each<Stage::count>(
              [&](auto r) { sum[j][r] = Reduce<Stage::reduction[r]>::combine(sum[j][r], sum[j + c][r]); });
        }
      }
      each<Stage::count>([&](auto r) { result[r] = sum[0][r]; });
    }

    template <class Stage>
    TORCHAD_EXT_INLINE void reduce(const Stage& stage, const V* values, V* result) const {
      reduce_lanes(stage, values, 0, rows.length, result);
    }
    template <Reduction reduction>
    static TORCHAD_EXT_INLINE V reduced(V lanes) {
      return Reduce<reduction>::template across<width / 2>(lanes);
    }

    template <bool whole>
    TORCHAD_EXT_INLINE void write(const typename Functor::Elements& elements, const V* values, int64_t i,
                                  int64_t count) const {
      V v[Functor::all];
      fetch<typename Functor::Elements>(v, values, i, whole ? width : count);
      const auto y = elements(v);
      each<y.count>([&](auto n) {
        constexpr int k = of_elements(n);
        if constexpr (Outputs::kind[k] == Kind::column) {
          C* sum = sums[column(k)] + i;
          store(sum, load(sum) + y.value[n]);
        } else if constexpr (whole) {
          cached ? store(to[k] + i, y.value[n]) : store_uncached(to[k] + i, y.value[n]);
        } else {
          store_some(to[k] + i, y.value[n], count);
        }
      });
    }

    TORCHAD_EXT_INLINE void begin(int64_t row, V* values) {
      each<inputs>([&](auto k) {
        from[k] = static_cast<const T*>(rows.data[outputs + k]) + rows.offset(outputs + k, row);
        step[k] = rows.steps[outputs + k];
        if (Inputs::kind[k] == Kind::row || step[k] == 0) {
          std::fill_n(repeated[k], width, *from[k]);
          from[k] = repeated[k];
          if (Inputs::kind[k] == Kind::row) values[k] = load(repeated[k]);
        }
      });
      each<outputs>([&](auto k) { to[k] = static_cast<T*>(rows.data[k]) + row * rows.row_strides[k]; });
    }

    TORCHAD_EXT_INLINE void end(const V* values_) const {
      if constexpr (!Functor::Elements::is_none) {
        const auto elements = functor.elements;
        const Wide self = *this;
        const int64_t length = rows.length;
        V values[Functor::all];
        each<Functor::all>([&](auto place) {
          if constexpr (Functor::Elements::takes(place)) values[place] = values_[place];
        });
        int64_t i = 0;
        for (; i + width <= length; i += width) self.template write<true>(elements, values, i, width);
        if (i < length) self.template write<false>(elements, values, i, length - i);
      }
      each<Functor::RowOutputs::count>(
          [&](auto n) { store_some(to[of_rows(n)], values_[Functor::RowOutputs::place[n]], 1); });
    }
  };

  static void run_wide(const Functor& functor, const Rows& rows, int64_t begin, int64_t end, double* sums) {
    const int64_t padded = (rows.length + width - 1) / width * width;
    const int64_t at_once = rows.length <= Wide::longest ? Wide::at_once : 1;
    const bool cached = !is_uncached(rows);
    std::vector<C> scratch((at_once * Functor::kept + columns) * padded);
    const auto array = [&](int64_t i) { return scratch.data() + i * padded; };
    T repeated[Wide::at_once][inputs][width];
    Wide wide[Wide::at_once] = {{functor, rows, {}, {}, {}, {}, cached, repeated[0], {}},
                                {functor, rows, {}, {}, {}, {}, cached, repeated[1], {}},
                                {functor, rows, {}, {}, {}, {}, cached, repeated[2], {}},
                                {functor, rows, {}, {}, {}, {}, cached, repeated[3], {}}};
    for (int64_t p = 0; p < at_once; ++p) {
      for (int k = 0; k < Functor::kept; ++k) wide[p].kept[k] = array(p * Functor::kept + k);
      for (int c = 0; c < columns; ++c) wide[p].sums[c] = array(at_once * Functor::kept + c);
    }
    V values[Wide::at_once][Functor::all];
    for (int64_t row = begin; row < end; row += at_once) {
      const int count = int(std::min(at_once, end - row));
      for (int p = 0; p < count; ++p) wide[p].begin(row + p, values[p]);
      stages(functor.stages, values, wide, count);
      for (int p = 0; p < count; ++p) wide[p].end(values[p]);
      if (columns == 0 || ((row - begin + count) % rows_a_block != 0 && row + count < end)) continue;
      for (int c = 0; c < columns; ++c) {
        C* sum = wide[0].sums[c];
        for (int64_t j = 0; j < rows.length; ++j) sums[c * rows.length + j] += sum[j];
        std::fill_n(sum, padded, C(0));
      }
    }
    if (!cached) store_fence();
  }

  // As many short rows as a vector has lanes, of a length that is known to the compiler, or 0.
  template <int fixed>
  struct Short {
    static constexpr int at_once = 1;
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
      each<Stage::count>([&](auto r) { result[r] = Reduce<Stage::reduction[r]>::template identity<V>(); });
      TORCHAD_EXT_UNROLL
      for (int j = 0; j < n(); ++j) {
        V v[Functor::all];
        fetch<typename Stage::Terms>(v, values, j);
        const auto y = stage.terms(v);
        each<Stage::count>([&](auto r) { result[r] = Reduce<Stage::reduction[r]>::combine(result[r], y.value[r]); });
        each<y.count - Stage::count>(
            [&](auto k) { kept[Stage::kept_at - Functor::kept_from + k][j] = y.value[Stage::count + k]; });
      }
    }
    template <Reduction>
    static TORCHAD_EXT_INLINE V reduced(V lanes) {
      return lanes;
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
      V values_[1][Functor::all];
      V* const values = values_[0];
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
      stages(functor.stages, values_, &some, 1);
      if constexpr (!Functor::Elements::is_none) {
        constexpr int given = decltype(functor.elements(values))::count;
        V written[given][Rows_::most];
        TORCHAD_EXT_UNROLL
        for (int j = 0; j < n; ++j) {
          V v[Functor::all];
          some.template fetch<typename Functor::Elements>(v, values, j);
          const auto y = functor.elements(v);
          each<given>([&](auto e) {
            constexpr int k = of_elements(e);
            if constexpr (Outputs::kind[k] == Kind::column) {
              sum[column(k)][j] += count == width ? y.value[e] : before<V>(count) ? y.value[e] : V{};
            } else {
              written[e][j] = y.value[e];
            }
          });
        }
        each<given>([&](auto e) {
          constexpr int k = of_elements(e);
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
        constexpr int k = of_rows(r);
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
