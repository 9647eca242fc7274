// The error functions of a Vector.
#pragma once

#include "exponential.h"

namespace torchad_ext {}  // namespace torchad_ext
