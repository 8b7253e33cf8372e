#define BRAINFAST_ISA_NAMESPACE align_avx2
#include "align_tokens_lanes.h"

namespace brainfast {

const AlignKernels& align_kernels_avx2() {
  static constexpr auto kernels = align_avx2::make_kernels<align_avx2::Machine<float, 8, 16, 6>>();
  return kernels;
}

}  // namespace brainfast
