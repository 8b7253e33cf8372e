#define BRAINFAST_ISA_NAMESPACE embed_amx
#include "vertex_embed_tiles.h"

namespace brainfast {

const BFloatEmbedKernels& bfloat_embed_kernels_amx() {
  static constexpr BFloatEmbedKernels kernels = embed_amx::make_tile_kernels();
  return kernels;
}

}  // namespace brainfast
