#define BRAINFAST_ISA_NAMESPACE projection_avx512
#include "factor_projection_lanes_table.h"

namespace brainfast {

const ProjectionKernels<float>& projection_kernels_avx512() {
  static constexpr auto kernels =
      projection_avx512::make_projection_kernels<projection_avx512::Machine<float, 16, 32, 12>>();
  return kernels;
}

}  // namespace brainfast
