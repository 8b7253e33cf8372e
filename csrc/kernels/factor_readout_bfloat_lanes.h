// Packing tokens as bfloat16, on vectors of 16 numbers.
#pragma once

#include "bfloat16_lanes.h"
#include "factor_readout_bfloat_kernels.h"
#include "factor_readout_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kPairs = 16;  // of channels, that a call of pack_tokens takes

// Word `i` of the result: channels 2i and 2i + 1 of one token, zeros from `channels` on.
BRAINFAST_INLINE Words pair_of_row(const float* row, int64_t channels, int part) {
  alignas(64) float halves[2][kVector] = {};
  for (int64_t d = 0; d < channels; ++d) halves[d % 2][d / 2] = row[d];
  return pair(upper_part(load_some(halves[0], kVector), part),
              upper_part(load_some(halves[1], kVector), part));
}

// Lane `p` of the result: channels d and d + 1 of pixel p. Rows are `stride` apart; the second one
// is zeros where `both` says so.
BRAINFAST_INLINE Words pair_of_pixels(const float* from, int64_t stride, bool both, int64_t pixels,
                                      int part) {
  const Words first = upper_part(load_some(from, pixels), part);
  const Words second = both ? upper_part(load_some(from + stride, pixels), part) : Words{};
  return pair(first, second);
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
