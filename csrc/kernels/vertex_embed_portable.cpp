#define BRAINFAST_ISA_NAMESPACE embed_portable
#include "vertex_embed_lanes.h"

namespace brainfast {

// Vectors of 16 bytes, which every 64-bit x86 and Arm processor has; two of them for doubles.
const EmbedKernels<float>& embed_kernels_portable() {
  static constexpr auto kernels =
      embed_portable::make_embed_kernels<embed_portable::Machine<float, 4, 16, 6>>();
  return kernels;
}

const EmbedKernels<double>& embed_kernels_portable_double() {
  static constexpr auto kernels =
      embed_portable::make_embed_kernels<embed_portable::Machine<double, 4, 16, 3>>();
  return kernels;
}

}  // namespace brainfast
