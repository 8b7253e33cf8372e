#define BRAINFAST_ISA_NAMESPACE embed_avx2
#include "vertex_embed_lanes.h"

namespace brainfast {

const EmbedKernels<float>& embed_kernels_avx2() {
  static constexpr auto kernels =
      embed_avx2::make_embed_kernels<embed_avx2::Machine<float, 8, 16, 6>>();
  return kernels;
}

}  // namespace brainfast
