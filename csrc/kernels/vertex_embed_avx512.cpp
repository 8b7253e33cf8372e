#define BRAINFAST_ISA_NAMESPACE embed_avx512
#include "vertex_embed_lanes.h"

namespace brainfast {

const EmbedKernels<float>& embed_kernels_avx512() {
  static constexpr auto kernels =
      embed_avx512::make_embed_kernels<embed_avx512::Machine<float, 16, 32, 12>>();
  return kernels;
}

}  // namespace brainfast
