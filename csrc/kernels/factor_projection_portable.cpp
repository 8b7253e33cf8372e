#define BRAINFAST_ISA_NAMESPACE projection_portable
#include "factor_projection_lanes_table.h"

namespace brainfast {

// Vectors of 16 bytes, which every 64-bit x86 and Arm processor has; two of them for doubles.
const ProjectionKernels<float>& projection_kernels_portable() {
  static constexpr auto kernels =
      projection_portable::make_projection_kernels<projection_portable::Machine<float, 4, 16, 6>>();
  return kernels;
}

const ProjectionKernels<double>& projection_kernels_portable_double() {
  static constexpr auto kernels = projection_portable::make_projection_kernels<
      projection_portable::Machine<double, 4, 16, 3>>();
  return kernels;
}

}  // namespace brainfast
