#define BRAINFAST_ISA_NAMESPACE readout_amx
#include "factor_readout_tiles_table.h"

namespace brainfast {

const BFloatKernels& bfloat_kernels_amx() {
  static constexpr BFloatKernels kernels = readout_amx::make_tile_kernels();
  return kernels;
}

}  // namespace brainfast
