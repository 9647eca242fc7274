// How work is cut into blocks of threads: what a kernel and its launch have to agree on.
#pragma once

#include "../strided.h"

namespace torchad_ext {

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

}  // namespace torchad_ext
