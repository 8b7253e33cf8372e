#define BRAINFAST_ISA_NAMESPACE readout_amx_emulated
#include "factor_readout_lanes_table.h"
#include "factor_readout_tiles_table.h"

namespace brainfast {

const BFloatKernels& bfloat_kernels_amx_emulated() {
  static constexpr BFloatKernels kernels = readout_amx_emulated::make_tile_kernels();
  return kernels;
}

const ReadoutKernels<float>& readout_kernels_wide() {
  static constexpr auto kernels =
      readout_amx_emulated::make_kernels<readout_amx_emulated::Machine<float, 16, 16, 1>>();
  return kernels;
}

}  // namespace brainfast
