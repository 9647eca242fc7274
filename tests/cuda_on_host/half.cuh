// In the place of csrc/cuda/half.cuh: the conversions of the host.
#pragma once

#include <bit>
#include <cstdint>

namespace torchad_ext {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float to_number(Half x) { return std::bit_cast<_Float16>(x); }
inline float to_number(BFloat16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
inline void assign(Half& to, float x) { to = std::bit_cast<Half>(_Float16(x)); }
inline void assign(BFloat16& to, float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  to.bits = x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace torchad_ext
