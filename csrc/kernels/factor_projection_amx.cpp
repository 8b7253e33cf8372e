#define BRAINFAST_ISA_NAMESPACE projection_amx
#include "factor_projection_tiles.h"

namespace brainfast {

const BFloatProjectionKernels& bfloat_projection_kernels_amx() {
  static constexpr BFloatProjectionKernels kernels = projection_amx::make_tile_kernels();
  return kernels;
}

}  // namespace brainfast
