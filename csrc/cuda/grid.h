// How work is cut into blocks of threads: what a kernel and its launch have to agree on.
#pragma once

#include "../strided.h"

namespace torchad_ext {

// An argument of a kernel that its launch knows as a pointer to so many elements.
template <class T, int n>
struct Array {
  T value[n];
};

constexpr int warp = 32;
constexpr unsigned whole_warp = 0xffffffff;

constexpr int64_t max_index = int64_t(1) << 31;  // below it a 32-bit index, stepped once, does not wrap

// Elements that move in one access, of 16 bytes.
TORCHAD_EXT_HOST_DEVICE constexpr int pack_size(int bytes_of_an_element) { return 16 / bytes_of_an_element; }

constexpr int pointwise_threads = 256;

// Packs of every input that a thread loads before it uses the first: enough bytes on their way to hide the latency of
// memory, few enough for the registers.
TORCHAD_EXT_HOST_DEVICE constexpr int packs_together(int inputs) { return inputs == 1 ? 4 : inputs <= 3 ? 2 : 1; }

constexpr int small_threads = 128;
constexpr int tile_threads = 256;

// How a large A is cut: into tiles of `rows` x tile_threads * width.
struct Tiles {
  int64_t rows, down, across;
};

constexpr int row_threads = 256;
constexpr int sum_threads = 1024;  // of the sums over all rows

// How rows are cut: a group of `lanes` threads computes a row, and `rows_a_group` one after another.
struct RowCut {
  int64_t length, rows;
  int packs;  // of a row
  int lanes, rows_a_group;
};

}  // namespace torchad_ext
