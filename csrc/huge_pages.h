// Huge pages for large results on the CPU.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace torchad_ext {

// Asks for huge pages under fresh memory: its first write otherwise spends more time in page faults than in arithmetic.
// Advice only; nothing depends on its being taken.
inline void advise_huge_pages(void* fresh, std::uintptr_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = 4096, large = 2 << 20;
  if (bytes < large) return;
  const auto start = reinterpret_cast<std::uintptr_t>(fresh);
  const std::uintptr_t begin = start / page * page, end = (start + bytes + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace torchad_ext
