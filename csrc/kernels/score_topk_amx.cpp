#define BRAINFAST_ISA_NAMESPACE topk_amx
#include "score_topk_tiles.h"

namespace brainfast {

const ScoreKernels& score_kernels_amx(FeatureKind kind) { return topk_amx::tile_kernels_of(kind); }

}  // namespace brainfast
