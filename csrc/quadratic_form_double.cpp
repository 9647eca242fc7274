// The quadratic form of float64.
#include "quadratic_form_loops.h"

namespace torchad_ext {

template void run_on_cpu(const QuadraticForms<double>&);
template void run_on_cpu(const OuterProducts<double>&);

}  // namespace torchad_ext
