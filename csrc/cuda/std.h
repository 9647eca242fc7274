// What the headers use of the C++ standard library, for NVRTC, which has none: it is given this under their names.
#ifndef TORCHAD_EXT_STD
#define TORCHAD_EXT_STD

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long;

namespace std {

using ::abs;
using ::log;
using ::pow;
using ::sqrt;
using size_t = decltype(sizeof 0);

template <bool chosen, class A, class B>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool chosen, class A, class B>
using conditional_t = typename conditional<chosen, A, B>::type;

template <class A, class B>
constexpr bool is_same_v = false;
template <class A>
constexpr bool is_same_v<A, A> = true;
template <class Base, class T>
constexpr bool is_base_of_v = __is_base_of(Base, T);
template <class T, class... Arguments>
constexpr bool is_constructible_v = __is_constructible(T, Arguments...);

template <class T>
T&& declval();

template <size_t... i>
struct index_sequence {};
template <size_t n, size_t... i>
struct count_up : count_up<n - 1, n - 1, i...> {};
template <size_t... i>
struct count_up<0, i...> {
  using type = index_sequence<i...>;
};
template <size_t n>
using make_index_sequence = typename count_up<n>::type;

}  // namespace std

#endif
