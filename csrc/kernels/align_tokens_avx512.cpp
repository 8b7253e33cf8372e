#define BRAINFAST_ISA_NAMESPACE align_avx512
#include "align_tokens_lanes.h"

namespace brainfast {

const AlignKernels& align_kernels_avx512() {
  static constexpr auto kernels =
      align_avx512::make_kernels<align_avx512::Machine<float, 16, 32, 12>>();
  return kernels;
}

}  // namespace brainfast
