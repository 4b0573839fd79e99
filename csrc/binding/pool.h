// Torch's own thread pool, through the stable ABI.
#pragma once
#include "program/program.h"

namespace pylandscape {

Parallel torch_pool();

}  // namespace pylandscape
