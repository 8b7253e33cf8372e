#define BRAINFAST_ISA_NAMESPACE readout_avx2
#include "factor_readout_lanes_table.h"

namespace brainfast {

const ReadoutKernels<float>& readout_kernels_avx2() {
  static constexpr auto kernels =
      readout_avx2::make_kernels<readout_avx2::Machine<float, 8, 16, 6>>();
  return kernels;
}

}  // namespace brainfast
