// The quadratic form of float32.
#include "quadratic_form_loops.h"

namespace torchad_ext {

template void run_on_cpu(const QuadraticForms<float>&);
template void run_on_cpu(const OuterProducts<float>&);

}  // namespace torchad_ext
