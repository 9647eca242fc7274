// What the CUDA sources use of CUDA, for a C++ compiler and the host: the threads of a block take turns, from one
// barrier to the next, in one thread of the host, and blocks run one after another. A warp goes as far ahead of the
// others as barriers let it. For tests of what the kernels compute: a missing barrier shows every time, a race between
// blocks never.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static

using std::min;
inline float normcdff(float x) { return 0.5f * erfcf(-0.70710678f * x); }
inline double normcdf(double x) { return 0.5 * erfc(-0.70710678118654752 * x); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }

// Functions that C++ lacks, by their definitions.
inline double erfcx(double x) {
  if (x < 100) return double(expl((long double)x * x) * erfcl(x));
  return 1 / (x * sqrt(M_PI)) * (1 - 1 / (2 * x * x) * (1 - 3 / (2 * x * x)));
}
inline float erfcx(float x) { return float(erfcx(double(x))); }
inline double erfinv(double x) {
  if (!(abs(x) < 1)) return x / (abs(x) == 1 ? 0.0 : NAN);
  double y = 0;
  for (int i = 0; i < 200; ++i) y -= (erf(y) - x) / (2 / sqrt(M_PI) * exp(-y * y)) / (1 + abs(y));
  return y;
}
inline float erfinv(float x) { return float(erfinv(double(x))); }

struct Index {
  int x;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

constexpr int warp_size = 32;
constexpr std::size_t stack_size = 1 << 17;

struct Barrier {
  int threads, arrived = 0, round = 0;
  void wait();
};
struct Warp {
  Barrier barrier{warp_size};
  char exchanged[warp_size][8];
};
struct Block {
  explicit Block(int threads)
      : barrier{threads}, warps(threads / warp_size), fibers(threads), stacks(new char[threads * stack_size]) {}

  void run(int index);

  Barrier barrier;
  std::vector<Warp> warps;
  std::function<void()> kernel;
  struct Fiber {
    ucontext_t context;
    bool ended;
    const Barrier* waits_for;
    int round;  // of the barrier

    bool can_run() const { return !ended && !(waits_for && waits_for->round == round); }
  };
  std::vector<Fiber> fibers;
  std::unique_ptr<char[]> stacks;
  ucontext_t caller;
};
inline thread_local Block* block;

// Threads wait by turns: each runs until it has to wait for another.
inline void Barrier::wait() {
  Block::Fiber& fiber = block->fibers[threadIdx.x];
  fiber.waits_for = this;
  fiber.round = round;
  if (++arrived == threads) {
    arrived = 0;
    ++round;
  }
  while (!fiber.can_run()) swapcontext(&fiber.context, &block->caller);
}

inline void run_thread() {
  block->kernel();
  block->fibers[threadIdx.x].ended = true;
}

inline void Block::run(int index) {
  block = this;
  blockIdx = {index};
  const int threads = int(fibers.size());
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.get() + thread * stack_size;
    fiber.context.uc_stack.ss_size = stack_size;
    fiber.context.uc_link = &caller;
    fiber.ended = false;
    fiber.waits_for = nullptr;
    makecontext(&fiber.context, run_thread, 0);
  }
  const auto run_warp = [&](int first) {
    bool has_run = false;
    for (int thread = first; thread < first + warp_size; ++thread) {
      if (!fibers[thread].can_run()) continue;
      has_run = true;
      threadIdx = {thread};
      swapcontext(&caller, &fibers[thread].context);
    }
    return has_run;
  };
  for (bool has_run = true; has_run;) {
    has_run = false;
    for (int first = 0; first < threads; first += warp_size) {
      while (run_warp(first)) has_run = true;
    }
  }
  for (const Fiber& fiber : fibers) {
    if (!fiber.ended) std::abort();  // some threads wait for one that does not come
  }
}

inline void __syncthreads() { block->barrier.wait(); }

// Every lane gives a value and takes that of another of its group of `width` lanes.
template <class T>
T __shfl_sync(unsigned, T value, int lane, int width = warp_size) {
  Warp& warp = block->warps[threadIdx.x / warp_size];
  std::memcpy(warp.exchanged[threadIdx.x % warp_size], &value, sizeof value);
  warp.barrier.wait();
  const int first = threadIdx.x % warp_size / width * width;
  std::memcpy(&value, warp.exchanged[first + lane % width], sizeof value);
  warp.barrier.wait();
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return __shfl_sync(mask, value, threadIdx.x % warp_size ^ distance);
}

// Runs a kernel, given pointers to its arguments.
template <class... Parameters, std::size_t... i>
void launch(void (*kernel)(Parameters...), int blocks, int threads, void** arguments, std::index_sequence<i...>) {
  Block shared(threads);
  shared.kernel = [&] { kernel(*static_cast<const Parameters*>(arguments[i])...); };
  blockDim = {threads};
  gridDim = {blocks};
  for (int at = 0; at < blocks; ++at) shared.run(at);
}

// Exports a kernel to driver.cpp.
#define ON_HOST(name)                                                         \
  extern "C" void name##_on_host(int blocks, int threads, void** arguments) { \
    const auto count = []<class... Parameters>(void (*)(Parameters...)) {     \
      return std::index_sequence_for<Parameters...>{};                        \
    };                                                                        \
    launch(name, blocks, threads, arguments, decltype(count(name)){});        \
  }
