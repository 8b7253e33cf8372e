#define BRAINFAST_ISA_NAMESPACE projection_amx_emulated
#include "factor_projection_tiles.h"

namespace brainfast {

const BFloatProjectionKernels& bfloat_projection_kernels_amx_emulated() {
  static constexpr BFloatProjectionKernels kernels = projection_amx_emulated::make_tile_kernels();
  return kernels;
}

}  // namespace brainfast
