// Results of CPU kernels of elements on awkward numbers, the same on every machine, for comparisons between them.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <type_traits>
#include <vector>

#include "run_kernels.h"

namespace torchad_ext {

// The i-th number of an operand: of ordinary size, a probability, of any size, or special. Halves get any bits.
template <class T>
T number(int64_t i, std::mt19937_64& random) {
  const double u = static_cast<double>(random() >> 11) * 0x1p-53;
  const int exponent = static_cast<int>(random() % 200) - 100;
  if constexpr (std::is_integral_v<T>) return static_cast<T>(random() >> 20);
  const double special[] = {INFINITY, -INFINITY, NAN, 0.0, -0.0, sizeof(T) == 8 ? 1e-310 : 1e-40};
  if (i % 50 == 0) return static_cast<T>(special[i / 50 % 6]);
  const double of_kind[] = {8 * u - 4, u, std::ldexp(u, exponent), 2000 * u - 1000};
  return static_cast<T>(of_kind[i % 4]);
}

// Writes all outputs to stdout as they lie in memory; T is an integer of the size of halves.
template <class T>
void print_results(const CpuKernel& kernel, int64_t n) {
  const int operands = kernel.inputs + kernel.outputs;
  std::vector<std::vector<T>> memory(operands, std::vector<T>(n));
  std::vector<void*> data;
  std::vector<int64_t> strides(operands * most_dims, 1);
  for (int k = 0; k < operands; ++k) {
    std::mt19937_64 random(k);
    for (int64_t i = 0; i < n; ++i) memory[k][i] = number<T>(i, random);
    data.push_back(memory[k].data());
  }
  const double scalars[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  compute(kernel, {1, &n, strides.data(), data.data()}, scalars, 0, n);
  for (int k = 0; k < kernel.outputs; ++k) std::fwrite(data[k], sizeof(T), n, stdout);
}

}  // namespace torchad_ext
