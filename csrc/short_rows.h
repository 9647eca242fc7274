// The CPU loops over short rows: as many at a time as a vector has lanes, one in each.
#pragma once

#include "rowwise_cpu.h"

namespace torchad_ext {

template <class Functor, class T>
struct ShortRows : RowsCpu<Functor, T> {
  using Base = RowsCpu<Functor, T>;
  using C = typename Base::C;
  using Inputs = typename Base::Inputs;
  using Outputs = typename Base::Outputs;
  using V = typename Base::V;
  static constexpr int width = Base::width, inputs = Base::inputs, outputs = Base::outputs, columns = Base::columns;
  static constexpr bool is_short = true;

  // Some rows, of a length that is known to the compiler, or 0.
  template <int fixed>
  struct Block {
    static constexpr int most = fixed ? fixed : int(longest_short_row / width + 1) * width;  // in whole vectors
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

  // Rows of contiguous elements, `stride` apart, as a vector for each place in the row.
  static TORCHAD_EXT_INLINE void gather(const T* data, int64_t stride, int64_t n, V* places) {
    const T* const end = data + (width - 1) * stride + n;
    for (int64_t j = 0; j < n; j += width) {
      V square[width];
      each<width>([&](auto r) {
        const T* const at = data + r * stride + j;
        square[r] = at + width <= end ? load(at) : load_some(at, n - j);
      });
      Square<width>::transpose(square);
      each<width>([&](auto i) { places[j + i] = square[i]; });
    }
  }

  // The same back, into rows that follow one another. What a vector writes past its row is written again.
  static TORCHAD_EXT_INLINE void scatter(const V* places, int64_t n, T* data) {
    const T* const end = data + width * n;
    for (int64_t j = (n - 1) / width * width; j >= 0; j -= width) {
      V square[width];
      each<width>([&](auto i) { square[i] = places[j + i]; });
      Square<width>::transpose(square);
      each<width>([&](auto r) {
        T* const at = data + r * n + j;
        at + width <= end ? store(at, square[r]) : store_some(at, square[r], n - j);
      });
    }
  }

  template <int fixed>
  static void run_block(const Functor& functor, const Rows& rows, int64_t begin, int64_t end, double* sums) {
    Block<fixed> some{functor, rows.length, {}, {}};
    const int64_t n = some.n();
    const bool cached = !Base::is_uncached(rows, true) || begin % width != 0;
    V sum[columns + 1][Block<fixed>::most] = {};
    T gathered[width];
    each<inputs>([&](auto k) TORCHAD_EXT_INLINED {
      if (Inputs::kind[k] != Kind::column) return;
      const T* data = static_cast<const T*>(rows.data[outputs + k]);
      for (int64_t j = 0; j < n; ++j) {
        fill(gathered, width, data[j * rows.steps[outputs + k]]);
        some.from[k][j] = load(gathered);
      }
    });
    int64_t blocks = 0;
    for (int64_t row = begin; row < end; row += width) {
      const int64_t count = least(width, end - row);
      V values[Functor::all];
      each<inputs>([&](auto k) TORCHAD_EXT_INLINED {
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
        if constexpr (!of_rows && fixed == 0) {
          if (even && step == 1) return gather(data, stride, n, some.from[k]);
        }
        if (of_rows && even && stride == 1) {
          values[k] = load(data);
          return;
        }
        int64_t at[width];  // the last row in the lanes that are left
        for (int64_t i = 0; i < width; ++i) {
          at[i] =
              even ? i * stride : rows.offset(outputs + k, row + least(i, count - 1)) - rows.offset(outputs + k, row);
        }
        for (int64_t j = 0; j < (of_rows ? 1 : n); ++j) {
          for (int64_t i = 0; i < width; ++i) gathered[i] = data[at[i] + j * step];
          some.from[k][j] = load(gathered);
        }
        if constexpr (of_rows) values[k] = some.from[k][0];
      });
      Base::stages(functor.stages, values, some);
      if constexpr (!Functor::Elements::is_none) {
        constexpr int given = decltype(functor.elements(values))::count;
        V written[given][Block<fixed>::most];
        TORCHAD_EXT_UNROLL
        for (int j = 0; j < n; ++j) {
          V v[Functor::all];
          some.template fetch<typename Functor::Elements>(v, values, j);
          const auto y = functor.elements(v);
          each<given>([&](auto e) TORCHAD_EXT_INLINED {
            constexpr int k = Outputs::of_elements(e);
            if constexpr (Outputs::kind[k] == Kind::column) {
              sum[Outputs::columns_before(k)][j] += count == width ? y.value[e] : before<V>(count) ? y.value[e] : V{};
            } else {
              written[e][j] = y.value[e];
            }
          });
        }
        each<given>([&](auto e) TORCHAD_EXT_INLINED {
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
            } else if (count == width) {
              return scatter(written[e], n, to);
            }
            for (int64_t j = 0; j < n; ++j) {
              store(gathered, written[e][j]);
              for (int64_t i = 0; i < count; ++i) to[i * n + j] = gathered[i];
            }
          }
        });
      }
      each<Functor::RowOutputs::count>([&](auto r) TORCHAD_EXT_INLINED {
        constexpr int k = Outputs::of_rows(r);
        store_some(static_cast<T*>(rows.data[k]) + row, values[Functor::RowOutputs::place[r]], count);
      });
      if (columns == 0 || (++blocks % Base::rows_a_block != 0 && row + width < end)) continue;
      for (int c = 0; c < columns; ++c) {
        for (int64_t j = 0; j < n; ++j) {
          for (int i = 0; i < width; ++i) sums[c * n + j] += sum[c][j][i];
          sum[c][j] = V{};
        }
      }
    }
    if (!cached) store_fence();
  }

  static TORCHAD_EXT_FLAT void run(const Rows& rows, const double* scalars, int64_t begin, int64_t end, double* sums) {
    const Functor functor(scalars);
    rows.length == 3 ? run_block<3>(functor, rows, begin, end, sums) : run_block<0>(functor, rows, begin, end, sums);
  }
};

}  // namespace torchad_ext
