#define BRAINFAST_ISA_NAMESPACE embed_amx_emulated
#include "vertex_embed_tiles.h"

namespace brainfast {

const BFloatEmbedKernels& bfloat_embed_kernels_amx_emulated() {
  static constexpr BFloatEmbedKernels kernels = embed_amx_emulated::make_tile_kernels();
  return kernels;
}

}  // namespace brainfast
