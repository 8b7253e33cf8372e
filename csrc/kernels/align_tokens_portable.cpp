#define BRAINFAST_ISA_NAMESPACE align_portable
#include "align_tokens_lanes.h"

namespace brainfast {

const AlignKernels& align_kernels_portable() {
  static constexpr auto kernels =
      align_portable::make_kernels<align_portable::Machine<float, 4, 16, 6>>();
  return kernels;
}

}  // namespace brainfast
