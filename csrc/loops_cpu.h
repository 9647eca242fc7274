// What runs a CPU kernel over the elements of a loop. It knows no PyTorch: each file is compiled beside the operators.
#pragma once

#include <cstdint>
#include <functional>

#include "kernel.h"
#include "strided.h"

namespace torchad_ext {

// Computes elements [begin, end) of a loop (runs_cpu.cpp).
void compute(const CpuKernel& kernel, const Loop& loop, const double* scalars, int64_t begin, int64_t end);

// Calls f(begin, end) for all of [0, n), by threads.
using ParallelFor = void (*)(int64_t n, const std::function<void(int64_t, int64_t)>& f);

// Computes a loop that is not empty. The result is the sum along the dimensions in which an output has the stride 0;
// one output or more has such a dimension, of more than one element (sums_cpu.cpp).
void compute_sums(const CpuKernel& kernel, const Loop& loop, const double* scalars, ParallelFor parallel_for);

}  // namespace torchad_ext
