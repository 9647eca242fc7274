// PyTorch's stable ABI. Its Half converts by intrinsics, whose header takes a quarter of the time that all of these
// take to read; no number is converted here, so they are read as for a CPU without them.
#pragma once

#pragma push_macro("__F16C__")
#undef __F16C__
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#pragma pop_macro("__F16C__")
