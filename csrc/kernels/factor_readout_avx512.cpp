#define BRAINFAST_ISA_NAMESPACE readout_avx512
#include "factor_readout_lanes_table.h"

namespace brainfast {

const ReadoutKernels<float>& readout_kernels_avx512() {
  static constexpr auto kernels =
      readout_avx512::make_kernels<readout_avx512::Machine<float, 16, 32, 12>>();
  return kernels;
}

}  // namespace brainfast
