// The built-in pointwise ops: their schemas, and their kernels for the CPU.
#include "pointwise_cpu.h"

STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext, m) {
  torchad_ext::define(m, "sin");
  torchad_ext::define(m, "exp");
}

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CPU, m) { torchad_ext::implement_all<torchad_ext::Cpu>(m); }
