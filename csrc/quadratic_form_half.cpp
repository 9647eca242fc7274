// The quadratic form of float16 and bfloat16.
#include "quadratic_form_loops.h"

namespace torchad_ext {

template void run_on_cpu(const QuadraticForms<Half>&);
template void run_on_cpu(const OuterProducts<Half>&);
template void run_on_cpu(const QuadraticForms<BFloat16>&);
template void run_on_cpu(const OuterProducts<BFloat16>&);

}  // namespace torchad_ext
