// bfloat16: the upper half of a float32, rounded to nearest, ties to even. A NaN stays one.
#pragma once

#include <cstdint>

#include "../runtime/cpu_features.h"

namespace brainfast {

// The bfloat16 of a number, and what it leaves over.
struct BFloatHalves {
  std::uint16_t high;
  std::uint16_t low;
};

BFloatHalves split_bfloat16(float number);
float widen_bfloat16(std::uint16_t bits);

// Puts the operand that `precision` multiplies in the place of every number: the number itself, its
// bfloat16, or the sum of its two halves, which float32 holds exactly.
void round_operands(Precision precision, std::int64_t count, const float* from, float* to);

}  // namespace brainfast
