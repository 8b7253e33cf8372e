#define BRAINFAST_ISA_NAMESPACE topk_portable
#include "score_topk_lanes.h"

namespace brainfast {

// Vectors of 16 bytes, which every 64-bit x86 and Arm processor has.
const ScoreKernels& score_kernels_portable(FeatureKind kind) {
  return topk_portable::kernels_of<4, 3, 3>(kind);
}

}  // namespace brainfast
