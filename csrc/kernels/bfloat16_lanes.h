// Rounding to bfloat16 on vectors of 16 numbers.
#pragma once

#include "lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int kVector = 16;

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

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
