// How a loop over elements is cut into runs, which a CPU kernel computes one after another. It is the same for every
// kernel, and compiled once.
//
// Where a vector is less than a cache line, a kernel of many operands comes back to each line after it has touched one
// of every other operand. If those fall into one set of a cache, as in tensors that lie a multiple of 4096 bytes apart,
// or if more results are written past the caches than there are buffers for unfinished lines, the line is gone by then.
// Such a run is computed in pieces: a few lines of each operand are copied at a time.
#include <algorithm>
#include <cstring>

#include "caches.h"
#include "loops_cpu.h"
#include "simd.h"

namespace torchad_ext {
namespace {

template <class T>
struct RunsCpu {
  static constexpr int block = 512;         // elements gathered at a time
  static constexpr int shortest_row = 128;  // a shorter row is gathered, with its neighbours
  static constexpr int piece = 64;          // elements
  static constexpr int line = 64 / sizeof(T);
  static constexpr int ways = 8;          // of a set of the smallest caches
  static constexpr int line_buffers = 6;  // that a core is sure to have free

  // How the elements of an input reach the kernel: as they lie in memory, as one number for a whole run, or copied one
  // after another.
  enum class Access { direct, repeated, gathered };

  const CpuKernel& kernel;
  const Loop& loop;
  int64_t at, end;
  int64_t row = INT64_MAX;      // runs end where rows of so many elements do
  int64_t longest = INT64_MAX;  // run, in elements
  bool cached = true;           // are the results to stay in the caches?
  Access* access = nullptr;
  T** copies = nullptr;      // of elements of each input
  CpuInput* from = nullptr;  // what the kernel reads in a run, and where it writes
  void** to = nullptr;
  int64_t left = 0;     // of the run
  int64_t written = 0;  // elements of a piece
  bool may_crowd = false, in_pieces = false;
  T* pieces = nullptr;             // of the inputs, then of the outputs
  CpuInput* piece_from = nullptr;  // what the kernel reads in a piece, and where it writes
  void** piece_to = nullptr;

  // Computes elements [begin, end) of the loop.
  static void compute(const CpuKernel& kernel, const Loop& loop, const double* scalars, int64_t begin, int64_t end) {
    const int inputs = kernel.inputs, outputs = kernel.outputs;
    RunsCpu runs{kernel, loop, begin, end};
    runs.access = static_cast<Access*>(__builtin_alloca(inputs * sizeof(Access)));
    runs.copies = static_cast<T**>(__builtin_alloca(inputs * sizeof(T*)));
    runs.from = static_cast<CpuInput*>(__builtin_alloca(inputs * sizeof(CpuInput)));
    runs.to = static_cast<void**>(__builtin_alloca(outputs * sizeof(void*)));
    runs.may_crowd = lanes<T> * sizeof(T) < 64 && inputs + outputs > ways;
    if (runs.may_crowd) {
      runs.piece_from = static_cast<CpuInput*>(__builtin_alloca(inputs * sizeof(CpuInput)));
      runs.piece_to = static_cast<void**>(__builtin_alloca(outputs * sizeof(void*)));
      runs.pieces = static_cast<T*>(__builtin_alloca((inputs + outputs) * (piece + line) * sizeof(T)));
    }
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
    const int64_t bytes = streams * int64_t(sizeof(T));
    cached = is_held((end - at) * bytes, loop.elements() * bytes);
    for (int k = 1; k < outputs; ++k) {
      cached = cached || until_aligned<T>(loop.data[k]) != until_aligned<T>(loop.data[0]);
    }
  }

  // The next run, or piece of one; false if there is none.
  bool next(CpuRun& run) {
    store_piece();
    if (left == 0) {
      if (at >= end) return false;
      left = std::min({end - at, row - at % row, longest});
      for (int k = 0; k < kernel.inputs; ++k) from[k] = read(k, left);
      // Outputs are dense and lead the loop, so they are contiguous in its order.
      for (int k = 0; k < kernel.outputs; ++k) to[k] = static_cast<T*>(loop.data[k]) + at;
      at += left;
      in_pieces = may_crowd && left >= piece && ((!cached && kernel.outputs > line_buffers) || crowd_a_set());
    }
    if (in_pieces) {
      run = next_piece();
    } else {
      run = {left, cached, to, from};
      left = 0;
    }
    return true;
  }

  // Do lines of more operands than a set of the cache has ways fall into one set? Caches of the first level have 64
  // sets.
  bool crowd_a_set() const {
    uint8_t lines[64] = {};
    bool crowded = false;
    const auto count = [&](const void* data) { crowded |= ++lines[uintptr_t(data) / 64 % 64] > ways; };
    for (int k = 0; k < kernel.outputs; ++k) count(to[k]);
    for (int k = 0; k < kernel.inputs; ++k) {
      if (from[k].step) count(from[k].data);
    }
    return crowded;
  }

  CpuRun next_piece() {
    const int64_t ahead = until_aligned<T>(to[0]);
    const int64_t size = std::min<int64_t>(left, ahead ? ahead : piece);
    T* copy = pieces;
    for (int k = 0; k < kernel.inputs; ++k, copy += piece + line) {  // each begins in another set than its neighbour
      piece_from[k] = from[k];
      if (!from[k].step) continue;
      std::memcpy(copy, from[k].data, size * sizeof(T));
      piece_from[k].data = copy;
      from[k].data = static_cast<const T*>(from[k].data) + size;
    }
    for (int k = 0; k < kernel.outputs; ++k, copy += piece + line) piece_to[k] = copy;
    left -= size;
    written = size;
    return {size, true, piece_to, piece_from};
  }

  // Copies the piece that was computed to where it belongs.
  void store_piece() {
    if (written == 0) return;
    for (int k = 0; k < kernel.outputs; ++k) {
      const T* const from = static_cast<const T*>(piece_to[k]);
      T* const result = static_cast<T*>(to[k]);
      if (cached || written < piece) {
        std::memcpy(result, from, written * sizeof(T));
      } else {
        for (int i = 0; i < piece; i += lanes<T>) store_uncached(result + i, load(from + i));
      }
      to[k] = result + written;
    }
    written = 0;
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

}  // namespace

void compute(const CpuKernel& kernel, const Loop& loop, const double* scalars, int64_t begin, int64_t end) {
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
