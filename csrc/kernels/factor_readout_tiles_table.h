// The table of the kernels on matrix tiles.
#pragma once

#include "factor_readout_tiles.h"
#include "factor_readout_tiles_tokens.h"
#include "factor_readout_tiles_vertices.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

inline int64_t turned_size(const BFloatView&) { return 0; }

constexpr BFloatKernels make_tile_kernels() {
  return {kTileDepth,        kUnitGroups * kGroupLanes,
          measure,           pack_tokens,
          pack_weight_pairs, forward_scratch,
          forward,           turned_size,
          nullptr,           vertex_scratch,
          vertex_gradients,  pair_vertices,
          token_scratch,     token_gradients};
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
