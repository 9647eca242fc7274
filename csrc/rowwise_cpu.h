// What the CPU loops over short rows (short_rows.h) and over longer ones (long_rows.h) share.
#pragma once

#include "caches.h"
#include "lanes.h"
#include "pointwise_cpu.h"
#include "rowwise.h"

namespace torchad_ext {

template <class T>
TORCHAD_EXT_INLINE void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <class F, int... i>
TORCHAD_EXT_INLINE void each_of([[maybe_unused]] F f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}
// Calls f with 0, 1, ..., n - 1, each a constant.
template <int n, class F>
TORCHAD_EXT_INLINE void each(F f) {
  each_of(f, std::make_integer_sequence<int, n>{});
}

template <class Functor, class T>
struct RowsCpu {
  using Inputs = typename Functor::Inputs;
  using Outputs = typename Functor::Outputs;
  using C = compute_t<T>;
  using V = Vector<C>;
  static constexpr int width = lanes<T>;
  static constexpr int inputs = Inputs::count, outputs = Outputs::count;
  static constexpr int rows_a_block = 64;  // whose sums over rows are made in the type that is computed in

  static constexpr int columns = Outputs::count_of(Kind::column);
  static constexpr int read = Inputs::count_of(Kind::element), written = Outputs::count_of(Kind::element);

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

  // Are the outputs to pass by the caches? They are when they are large, and a vector of each is aligned.
  static bool is_uncached(const Rows& rows, bool aligned) {
    for (int k = 0; k < outputs; ++k) {
      aligned = aligned && (Outputs::kind[k] != Kind::element || until_aligned<T>(rows.data[k]) == 0);
    }
    const int64_t bytes = rows.count * rows.length * int64_t(sizeof(T));
    return aligned && !is_held(bytes * written, bytes * (written + read));
  }

  static void store_sum(const double* sums, int64_t count, int64_t stride, int64_t length, void* to) {
    for (int64_t j = 0; j < length; j += width) {
      const int64_t some = least(width, length - j);
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
};

template <class Loops>
constexpr RowKernel row_kernel(Dtype dtype, const char* name) {
  return {
      {Loops::inputs, Loops::outputs, dtype, name}, Loops::kinds.kind, Loops::run, Loops::store_sum, Loops::is_short};
}

}  // namespace torchad_ext

// Exports the loops over rows of a functor, ShortRows or LongRows, as a RowKernel.
#define TORCHAD_EXT_ROW_KERNEL(name, Rows_, Functor, dtype)                                                    \
  extern "C" {                                                                                                 \
  extern const torchad_ext::RowKernel name;                                                                    \
  const torchad_ext::RowKernel name =                                                                          \
      torchad_ext::row_kernel<torchad_ext::Rows_<Functor, torchad_ext::storage_t<torchad_ext::Dtype::dtype>>>( \
          torchad_ext::Dtype::dtype, #Functor);                                                                \
  }
