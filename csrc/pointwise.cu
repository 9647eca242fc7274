// The built-in pointwise ops for CUDA.
#include "pointwise_cuda.cuh"

STABLE_TORCH_LIBRARY_IMPL(torchad_ext, CUDA, m) { torchad_ext::implement_all<torchad_ext::Cuda>(m); }
