// The table of an instruction set's kernels.
#pragma once

#include "factor_readout_lanes.h"
#include "factor_readout_lanes_tokens.h"
#include "factor_readout_lanes_vertices.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

template <class M>
constexpr ReadoutKernels<typename M::Scalar> make_kernels() {
  return {M::kLanes,          M::kMaxRows,      pack_tokens<M>,     pack_weight<M>,
          forward_scratch<M>, forward<M>,       vertex_scratch<M>,  vertex_gradients<M>,
          sort_weight<M>,     token_scratch<M>, token_gradients<M>, fma_loop<M>};
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
