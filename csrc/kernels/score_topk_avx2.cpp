#define BRAINFAST_ISA_NAMESPACE topk_avx2
#include "score_topk_lanes.h"

namespace brainfast {

const ScoreKernels& score_kernels_avx2(FeatureKind kind) {
  return topk_avx2::kernels_of<8, 3, 3>(kind);
}

}  // namespace brainfast
