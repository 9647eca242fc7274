// In the place of csrc/cuda/half.cuh: the conversions of the host.
#pragma once

#include <bit>
#include <cstdint>

namespace torchad_ext {

inline float float_of_half(uint16_t bits) { return std::bit_cast<_Float16>(bits); }
inline uint16_t half_of_float(float x) { return std::bit_cast<uint16_t>(_Float16(x)); }

}  // namespace torchad_ext
