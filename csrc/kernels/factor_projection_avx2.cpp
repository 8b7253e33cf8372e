#define BRAINFAST_ISA_NAMESPACE projection_avx2
#include "factor_projection_lanes_table.h"

namespace brainfast {

const ProjectionKernels<float>& projection_kernels_avx2() {
  static constexpr auto kernels =
      projection_avx2::make_projection_kernels<projection_avx2::Machine<float, 8, 16, 6>>();
  return kernels;
}

}  // namespace brainfast
