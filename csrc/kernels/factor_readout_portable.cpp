#define BRAINFAST_ISA_NAMESPACE readout_portable
#include "factor_readout_lanes_table.h"

namespace brainfast {

// Vectors of 16 bytes, which every 64-bit x86 and Arm processor has; two of them for doubles.
const ReadoutKernels<float>& readout_kernels_portable() {
  static constexpr auto kernels =
      readout_portable::make_kernels<readout_portable::Machine<float, 4, 16, 6>>();
  return kernels;
}

const ReadoutKernels<double>& readout_kernels_portable_double() {
  static constexpr auto kernels =
      readout_portable::make_kernels<readout_portable::Machine<double, 4, 16, 3>>();
  return kernels;
}

}  // namespace brainfast
