#include "derivatives/parameters.h"

namespace pylandscape {

template <typename T>
void pack_parameters(const Program<T>& program, const TileLayout& layout, const T* vector,
                     const T* constants, Vector<T>& to) {
  const cpu::Kernels<T>& kernels = program.kernels();
  if (to.packed.size() == 0)
    to = {Buffer<T>(program.packed_size()), Buffer<T>(program.packed_size())};
  for (const Use& use : program.uses()) {
    const T* source = use.source >= 0        ? vector + use.source
                      : constants != nullptr ? constants + (-1 - use.source)
                                             : nullptr;
    if (source == nullptr) continue;
    program.pack(use, vector, constants, to.packed.data() + use.packed);
    if (!layout.transposed[&use - program.uses().data()]) continue;
    T* transposed = to.transposed.data() + use.packed;
    if (use.packing == Use::Packing::kConv)
      kernels.pack_conv_transposed(use.conv, source, transposed);
    else if (use.transposed())
      kernels.pack(use.cols, use.rows, source, transposed);
    else
      kernels.pack_transposed(use.rows, use.cols, source, transposed);
  }
}

template void pack_parameters(const Program<float>&, const TileLayout&, const float*, const float*,
                              Vector<float>&);
template void pack_parameters(const Program<double>&, const TileLayout&, const double*,
                              const double*, Vector<double>&);

}  // namespace pylandscape
