// In the place of csrc/half.cuh: PyTorch's types of the host.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace torchad_ext {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

inline float to_number(Half x) { return x; }
inline float to_number(BFloat16 x) { return x; }
inline void assign(Half& to, float x) { to = x; }
inline void assign(BFloat16& to, float x) { to = x; }

}  // namespace torchad_ext
