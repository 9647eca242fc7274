// Moves and reductions across the lanes of vectors.
#pragma once

#include <utility>

#include "rowwise.h"
#include "simd.h"

#define TORCHAD_EXT_INLINE inline __attribute__((always_inline))
#define TORCHAD_EXT_INLINED __attribute__((always_inline))  // of a lambda
#define TORCHAD_EXT_FLAT __attribute__((flatten))           // all that it calls is inlined

namespace torchad_ext {

template <class V>
using Lane = std::decay_t<decltype(std::declval<V>()[0])>;
template <class V>
using Lanes = Vector<std::conditional_t<sizeof(Lane<V>) == 4, int32_t, int64_t>>;

template <class V>
V all_lanes(Lane<V> value) {
  return value - V{};
}

// Which lanes come before the count?
template <class V>
TORCHAD_EXT_INLINE auto before(int64_t count) {
  Lanes<V> lane;
  for (int i = 0; i < lanes<Lane<V>>; ++i) lane[i] = i;
  return lane < Lane<Lanes<V>>(count);
}

template <int distance, class V, std::size_t... i>
TORCHAD_EXT_INLINE V swapped(V x, std::index_sequence<i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, int(i ^ distance)...);
#else
  return __builtin_shuffle(x, Lanes<V>{int(i ^ distance)...});
#endif
}

// Lane i of the result is lane place[i] of a, or lane place[i] - lanes of b.
template <class Places_, class V, std::size_t... i>
TORCHAD_EXT_INLINE V picked(V a, V b, std::index_sequence<i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Places_::place(i)...);
#else
  return __builtin_shuffle(a, b, Lanes<V>{Places_::place(i)...});
#endif
}

// Rows of n elements, one after another in n vectors, as a vector for each place in the row, and back. Each vector is
// made of the n others by n - 1 picks.
template <int n, int width>
struct Transposed {
  template <int j, int step>  // of place j, from vector `step` on
  struct Gathered {
    static constexpr int place(int lane) {
      const int at = lane * n + j, vector = at / width;
      return vector == step ? width + at % width : vector == 0 && step == 1 ? at % width : lane;
    }
  };
  template <int s, int step>  // of vector s, from place `step` on
  struct Scattered {
    static constexpr int place(int lane) {
      const int at = s * width + lane, j = at % n;
      return j == step ? width + at / n : j == 0 && step == 1 ? at / n : lane;
    }
  };

  template <template <int, int> class Picks, int to, int step, class V>
  static TORCHAD_EXT_INLINE V one(const V* from, V made) {
    if constexpr (step == n) {
      return made;
    } else {
      constexpr auto all = std::make_index_sequence<width>{};
      return one<Picks, to, step + 1>(from, picked<Picks<to, step>>(made, from[step], all));
    }
  }
  template <template <int, int> class Picks, class V, int... to>
  static TORCHAD_EXT_INLINE void each(const V* from, V* result, std::integer_sequence<int, to...>) {
    ((result[to] = one<Picks, to, 1>(from, from[0])), ...);
  }
  template <class V>
  static TORCHAD_EXT_INLINE void gather(const V* from, V* result) {
    each<Gathered>(from, result, std::make_integer_sequence<int, n>{});
  }
  template <class V>
  static TORCHAD_EXT_INLINE void scatter(const V* from, V* result) {
    each<Scattered>(from, result, std::make_integer_sequence<int, n>{});
  }
};

// As many vectors as a vector has lanes, whose rows become columns: the halves that lie across are exchanged, in ever
// smaller squares.
template <int width>
struct Square {
  template <int distance>
  struct Upper {
    static constexpr int place(int lane) { return lane & distance ? width + lane - distance : lane; }
  };
  template <int distance>
  struct Lower {
    static constexpr int place(int lane) { return lane & distance ? width + lane : lane + distance; }
  };

  template <int distance, class V, int... pair>
  static TORCHAD_EXT_INLINE void exchange(V* rows, std::integer_sequence<int, pair...>) {
    constexpr auto all = std::make_index_sequence<width>{};
    const auto one = [&](V& upper, V& lower) {
      const V a = upper, b = lower;
      upper = picked<Upper<distance>>(a, b, all);
      lower = picked<Lower<distance>>(a, b, all);
    };
    (one(rows[pair / distance * 2 * distance + pair % distance],
         rows[pair / distance * 2 * distance + pair % distance + distance]),
     ...);
  }
  template <int distance = width / 2, class V>
  static TORCHAD_EXT_INLINE void transpose(V* rows) {
    if constexpr (distance > 0) {
      exchange<distance>(rows, std::make_integer_sequence<int, width / 2>{});
      transpose<distance / 2>(rows);
    }
  }
};

// Two vectors in groups of 2 distance lanes: the lanes of each group from `first` on, distance of them.
template <int distance, int first, int width>
struct Halves {
  static constexpr int place(int lane) {
    const int at = lane % (width / 2);
    return lane / (width / 2) * width + at / distance * 2 * distance + at % distance + first;
  }
};

template <Reduction reduction>
struct Reduce {
  template <class V>
  static V identity() {
    if constexpr (reduction == Reduction::sum) return V{};
    return all_lanes<V>(reduction == Reduction::largest ? -INFINITY : INFINITY);
  }

  template <class V>
  static V combine(V a, V b) {
    if constexpr (reduction == Reduction::sum) return a + b;
    if constexpr (reduction == Reduction::largest) return maximum(a, b);
    if constexpr (reduction == Reduction::smallest) return minimum(a, b);
  }

  // All lanes reduced, in every lane.
  template <int distance, class V>
  static V across(V x) {
    if constexpr (distance == 0) {
      return x;
    } else {
      constexpr auto all = std::make_index_sequence<lanes<Lane<V>>>{};
      return across<distance / 2>(combine(x, swapped<distance>(x, all)));
    }
  }

  // Lane i of the result is vector i of n reduced over its lanes; for n below its lanes, over some of them.
  template <int n, class V>
  static V across_each(const V* x) {
    if constexpr (n == 1) {
      return *x;
    } else {
      constexpr int width = lanes<Lane<V>>, distance = width / n;
      constexpr auto all = std::make_index_sequence<width>{};
      const V a = across_each<n / 2>(x), b = across_each<n / 2>(x + n / 2);
      return combine(picked<Halves<distance, 0, width>>(a, b, all),
                     picked<Halves<distance, distance, width>>(a, b, all));
    }
  }
};

}  // namespace torchad_ext
