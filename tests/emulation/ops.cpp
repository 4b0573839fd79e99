// torch.ops.pylandscape_emulated: the CUDA ops on tensors of the CPU, by emulation. The same
// schemas, checks and launchers as on a GPU.
#include <torch/csrc/stable/library.h>

#include "binding/cuda_ops.h"
#include "binding/derivative_ops.h"
#include "binding/layer_ops.h"
#include "binding/point_ops.h"
#include "binding/program_ops.h"
#include "binding/schemas.h"
#include "binding/spectral_ops.h"
#include "cuda_emulation.h"

STABLE_TORCH_LIBRARY(pylandscape_emulated, m) { pylandscape::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pylandscape_emulated, CPU, m) {
  pylandscape::implement<pylandscape::Cuda>(m);
  pylandscape::implement_programs(m);
  pylandscape::implement_derivatives(m);
  pylandscape::implement_layers(m);
  pylandscape::implement_spectral(m);
  pylandscape::implement_points(m);
}

extern "C" {

// Orders as in fibers.h: 0 forward, 1 reversed, 2 shuffled from the seed.
__attribute__((visibility("default"))) void emulation_order(int threads, int blocks,
                                                            uint64_t seed) {
  emulation::settings = {static_cast<emulation::Order>(threads),
                         static_cast<emulation::Order>(blocks), seed};
}

// How many blocks the emulated device runs at once.
__attribute__((visibility("default"))) void emulation_blocks(int64_t blocks) {
  pylandscape::emulated_blocks = blocks;
}

__attribute__((visibility("default"))) int64_t emulation_launches() { return emulation::launches; }

}  // extern "C"
