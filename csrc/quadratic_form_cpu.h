// What computes quadratic forms on the CPU: quadratic_form_loops.h, compiled for each dtype in a file of its own, which
// reads no header of PyTorch.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "quadratic_form_data.h"

namespace torchad_ext {

template <class T>
void run_on_cpu(const QuadraticForms<T>& forms);

template <class T>
void run_on_cpu(const OuterProducts<T>& outer);

// Calls f(closure, from, to) by the threads that PyTorch has, for parts of [0, count) of `grain` or more.
void share_out(int64_t count, int64_t grain, void (*f)(const void* closure, int64_t from, int64_t to),
               const void* closure);

template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  const auto call = [](const void* closure, int64_t from, int64_t to) { (*static_cast<const F*>(closure))(from, to); };
  share_out(count, grain, call, &f);
}

}  // namespace torchad_ext
