#define BRAINFAST_ISA_NAMESPACE topk_amx_emulated
#include "score_topk_tiles.h"

namespace brainfast {

const ScoreKernels& score_kernels_amx_emulated(FeatureKind kind) {
  return topk_amx_emulated::tile_kernels_of(kind);
}

}  // namespace brainfast
