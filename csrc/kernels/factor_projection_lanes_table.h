// The table of an instruction set's kernels.
#pragma once

#include "factor_projection_lanes.h"
#include "factor_projection_lanes_gradients.h"
#include "panel_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

template <class M>
constexpr ProjectionKernels<typename M::Scalar> make_projection_kernels() {
  using T = typename M::Scalar;
  return {M::kLanes,
          M::kMaxRows,
          pack_panel<M>,
          unpack_panel<M>,
          project<M, ProjectionTask<T, T>>,
          token_scratch<M>,
          token_gradients<M>,
          factor_scratch<M>,
          factor_gradients<M>};
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
