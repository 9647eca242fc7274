// Runs CPU kernels as the operators do, by threads that share their operands, for sanitizers.
#pragma once

#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "long_rows.h"
#include "loops_cpu.h"
#include "short_rows.h"

namespace torchad_ext {

constexpr int threads = 8;

// Memory of just so many elements, and the tasks [begin, end) of each thread, which are not even.
struct Operand {
  std::unique_ptr<char[]> memory;
  Operand(int64_t elements, Dtype dtype) {
    const bool wide = dtype == Dtype::float64, half = dtype == Dtype::float16 || dtype == Dtype::bfloat16;
    memory.reset(new char[elements * (wide ? 8 : half ? 2 : 4)]());
  }
};

template <class F>
void in_parallel(int64_t tasks, F f) {
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([=] {
      const int64_t begin = tasks * t / threads, end = tasks * (t + 1) / threads;
      if (begin < end) f(begin, end);
    });
  }
  for (std::thread& thread : all) thread.join();
}

inline void run_kernel(const CpuKernel& kernel, int64_t n) {
  const int operands = kernel.inputs + kernel.outputs;
  std::vector<Operand> memory;
  std::vector<void*> data;
  std::vector<int64_t> strides(operands * most_dims, 1);
  for (int k = 0; k < operands; ++k) {
    memory.emplace_back(n, kernel.dtype);
    data.push_back(memory.back().memory.get());
  }
  const double scalars[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  const Loop loop{1, &n, strides.data(), data.data()};
  in_parallel(n, [&](int64_t begin, int64_t end) { compute(kernel, loop, scalars, begin, end); });
}

// A loop over [rows, length], with the sums of one output over the rows and of the next over their elements.
inline void run_sums(const CpuKernel& kernel, int64_t rows, int64_t length) {
  const int operands = kernel.inputs + kernel.outputs;
  std::vector<Operand> memory;
  std::vector<void*> data;
  std::vector<int64_t> strides(operands * most_dims);
  for (int k = 0; k < operands; ++k) {
    const bool is_sum = k < kernel.outputs, of_rows = is_sum && k % 2 == 0;
    memory.emplace_back(!is_sum ? rows * length : of_rows ? length : rows, kernel.dtype);
    data.push_back(memory.back().memory.get());
    strides[k * most_dims] = !is_sum || of_rows;
    strides[k * most_dims + 1] = !is_sum ? length : !of_rows;
  }
  const double scalars[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  const int64_t sizes[] = {length, rows};
  compute_sums(kernel, {2, sizes, strides.data(), data.data()}, scalars,
               [](int64_t n, const std::function<void(int64_t, int64_t)>& f) { in_parallel(n, f); });
}

inline void run_kernel(const RowKernel& kernel, int64_t rows, int64_t length) {
  const int operands = kernel.inputs + kernel.outputs;
  std::vector<Operand> memory;
  std::vector<void*> data;
  std::vector<int64_t> row_strides, steps;
  std::vector<const int64_t*> strides(operands);
  std::vector<void*> columns;
  for (int k = 0; k < operands; ++k) {
    const Kind kind = kernel.kinds[k];
    memory.emplace_back(kind == Kind::element ? rows * length : kind == Kind::row ? rows : length, kernel.dtype);
    data.push_back(memory.back().memory.get());
    row_strides.push_back(kind == Kind::element ? length : kind == Kind::row);
    steps.push_back(kind == Kind::row || length == 1 ? 0 : 1);
    if (k < kernel.outputs && kind == Kind::column) columns.push_back(data.back());
  }
  std::vector<double> scalars(8, 1), sums(threads * columns.size() * length);
  const Rows all{length, rows, data.data(), steps.data(), row_strides.data(), 1, &rows, strides.data()};
  in_parallel(threads, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      kernel.run(all, scalars.data(), rows * task / threads, rows * (task + 1) / threads,
                 sums.data() + task * columns.size() * length);
    }
  });
  for (std::size_t c = 0; c < columns.size(); ++c) {
    kernel.store_sum(sums.data() + c * length, threads, columns.size() * length, length, columns[c]);
  }
}

}  // namespace torchad_ext
