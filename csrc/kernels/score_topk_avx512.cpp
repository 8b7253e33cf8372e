#define BRAINFAST_ISA_NAMESPACE topk_avx512
#include "score_topk_lanes.h"

namespace brainfast {

const ScoreKernels& score_kernels_avx512(FeatureKind kind) {
  return topk_avx512::kernels_of<16, 4, 6>(kind);
}

}  // namespace brainfast
