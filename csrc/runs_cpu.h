// How a loop over elements is cut into runs, which a CPU kernel computes one after another. It is the same for every
// kernel, and compiled once.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "simd.h"
#include "strided.h"

namespace torchad_ext {

template <class T>
struct RunsCpu {
  static constexpr int block = 512;         // elements gathered at a time
  static constexpr int shortest_row = 128;  // a shorter row is gathered, with its neighbours

  // How the elements of an input reach the kernel: as they lie in memory, as one number for a whole run, or copied one
  // after another.
  enum class Access { direct, repeated, gathered };

  const CpuKernel& kernel;
  const Loop& loop;
  int64_t at, end;
  int64_t row = INT64_MAX;      // runs end where rows of so many elements do
  int64_t longest = INT64_MAX;  // run, in elements
  bool cached = true;           // are the results to stay in the caches?
  Access* access;
  T** copies;      // of elements of each input
  CpuInput* from;  // what the kernel reads in a run, and where it writes
  void** to;

  // Computes elements [begin, end) of the loop.
  static void compute(const CpuKernel& kernel, const Loop& loop, const double* scalars, int64_t begin, int64_t end) {
    const int inputs = kernel.inputs, outputs = kernel.outputs;
    RunsCpu runs{kernel, loop, begin, end};
    runs.access = static_cast<Access*>(__builtin_alloca(inputs * sizeof(Access)));
    runs.copies = static_cast<T**>(__builtin_alloca(inputs * sizeof(T*)));
    runs.from = static_cast<CpuInput*>(__builtin_alloca(inputs * sizeof(CpuInput)));
    runs.to = static_cast<void**>(__builtin_alloca(outputs * sizeof(void*)));
    runs.plan();
    for (int k = 0; k < inputs; ++k) {
      if (runs.access[k] == Access::direct) continue;
      const int copied = runs.access[k] == Access::gathered ? block : lanes<T>;
      runs.copies[k] = static_cast<T*>(__builtin_alloca(copied * sizeof(T)));
    }
    kernel.run(scalars, [](void* runs, CpuRun& run) { return static_cast<RunsCpu*>(runs)->next(run); }, &runs);
    if (!runs.cached) store_fence();
  }

  void plan() {
    const int outputs = kernel.outputs;
    const int64_t innermost = loop.dims > 0 ? loop.sizes[0] : 1;
    const bool by_rows = loop.dims < 2 || innermost >= shortest_row;
    if (by_rows) row = innermost;
    int streams = outputs;  // of as much memory as an output
    for (int k = 0; k < kernel.inputs; ++k) {
      const int64_t step = loop.dims > 0 ? loop.stride(outputs + k, 0) : 0;
      const bool repeated = loop.repeated(outputs + k) || (by_rows && step == 0);
      const bool direct = (by_rows && step == 1) || loop.contiguous(outputs + k);
      access[k] = repeated ? Access::repeated : direct ? Access::direct : Access::gathered;
      if (access[k] == Access::gathered) longest = block;
      streams += !repeated;
    }
    cached = (end - at) * streams * int64_t(sizeof(T)) < most_cached_bytes;
    for (int k = 1; k < outputs; ++k) {
      cached = cached || until_aligned<T>(loop.data[k]) != until_aligned<T>(loop.data[0]);
    }
  }

  // The next run; false if there is none.
  bool next(CpuRun& run) {
    if (at >= end) return false;
    const int64_t size = std::min({end - at, row - at % row, longest});
    for (int k = 0; k < kernel.inputs; ++k) from[k] = read(k, size);
    // Outputs are dense and lead the loop, so they are contiguous in its order.
    for (int k = 0; k < kernel.outputs; ++k) to[k] = static_cast<T*>(loop.data[k]) + at;
    run = {size, cached, to, from};
    at += size;
    return true;
  }

  // The next n elements of an input.
  CpuInput read(int input, int64_t n) {
    const int operand = kernel.outputs + input;
    T* const copy = copies[input];
    if (access[input] == Access::gathered) {
      gather(operand, n, copy);
      return {copy, 1};
    }
    const T* data = static_cast<const T*>(loop.data[operand]) + loop.offset(operand, at);
    if (access[input] == Access::direct) return {data, 1};
    std::fill_n(copy, lanes<T>, *data);
    return {copy, 0};
  }

  // Copies the next n elements of an operand, in the order of the loop.
  void gather(int operand, int64_t n, T* copy) const {
    const T* data = static_cast<const T*>(loop.data[operand]);
    const int64_t step = loop.stride(operand, 0);
    int64_t position[most_dims], begin = at;
    for (int d = 0; d < loop.dims; ++d) {
      position[d] = begin % loop.sizes[d];
      begin /= loop.sizes[d];
      data += position[d] * loop.stride(operand, d);
    }
    while (true) {
      const int64_t run = std::min(n, loop.sizes[0] - position[0]);
      if (step == 0) {
        std::fill_n(copy, run, *data);
      } else if (step == 1) {
        std::memcpy(copy, data, run * sizeof(T));
      } else {
        for (int64_t i = 0; i < run; ++i) copy[i] = data[i * step];
      }
      copy += run;
      n -= run;
      if (n == 0) return;
      data -= position[0] * step;
      position[0] = 0;
      for (int d = 1; d < loop.dims; ++d) {
        data += loop.stride(operand, d);
        if (++position[d] < loop.sizes[d]) break;
        data -= position[d] * loop.stride(operand, d);
        position[d] = 0;
      }
    }
  }
};

// Computes elements [begin, end) of the loop of a kernel.
inline void compute(const CpuKernel& kernel, const Loop& loop, const double* scalars, int64_t begin, int64_t end) {
  switch (kernel.dtype) {
    case Dtype::float16:
      return RunsCpu<Half>::compute(kernel, loop, scalars, begin, end);
    case Dtype::bfloat16:
      return RunsCpu<BFloat16>::compute(kernel, loop, scalars, begin, end);
    case Dtype::float32:
      return RunsCpu<float>::compute(kernel, loop, scalars, begin, end);
    case Dtype::float64:
      return RunsCpu<double>::compute(kernel, loop, scalars, begin, end);
  }
}

}  // namespace torchad_ext
