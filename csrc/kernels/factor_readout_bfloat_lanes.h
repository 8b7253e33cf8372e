// Rounding to bfloat16 on vectors of 16 numbers, for the packers of tokens.
#pragma once

#include "factor_readout_bfloat_kernels.h"
#include "factor_readout_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int kVector = 16;
constexpr int64_t kPairs = 16;  // of channels, that a call of pack_tokens takes

typedef float Floats __attribute__((vector_size(64), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(64), may_alias));
typedef std::uint32_t LooseWords __attribute__((vector_size(64), aligned(4), may_alias));
typedef float LooseFloats __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint32_t Word __attribute__((may_alias));  // a pair of bfloat16, the first one low

// Round to nearest, ties to even, as the upper half of every word; a NaN stays one.
BRAINFAST_INLINE Words upper_bfloat16(Floats numbers) {
  const Words bits = reinterpret_cast<Words>(numbers);
  const Words number = reinterpret_cast<Words>(numbers == numbers);
  const Words rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return ((number & rounded) | (~number & (bits | 0x400000u))) & 0xffff0000u;
}

// Part 0 of numbers is their bfloat16, part 1 the bfloat16 of what that leaves over.
BRAINFAST_INLINE Words upper_part(Floats numbers, int part) {
  const Words high = upper_bfloat16(numbers);
  return part == 0 ? high : upper_bfloat16(numbers - reinterpret_cast<Floats>(high));
}

BRAINFAST_INLINE Words pair(Words first, Words second) { return first >> 16 | second; }

// The first `count` numbers, and zeros.
BRAINFAST_INLINE Floats load_some(const float* from, int64_t count) {
  if (count == kVector) return *reinterpret_cast<const LooseFloats*>(from);
  Floats numbers = {};
  for (int64_t i = 0; i < count; ++i) numbers[i] = from[i];
  return numbers;
}

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
