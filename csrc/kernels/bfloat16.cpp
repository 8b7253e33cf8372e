#include "bfloat16.h"

#include <algorithm>
#include <bit>

namespace brainfast {
namespace {

// Without a branch, so that loops over it become vectors.
inline float round_to_bfloat16(float number) {
  const auto bits = std::bit_cast<std::uint32_t>(number);
  const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  const std::uint32_t kept = number == number ? rounded : bits | 0x400000u;
  return std::bit_cast<float>(kept & 0xffff0000u);
}

inline float low_part(float number, float high) { return round_to_bfloat16(number - high); }

std::uint16_t upper_half(float number) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(number) >> 16);
}

}  // namespace

BFloatHalves split_bfloat16(float number) {
  const float high = round_to_bfloat16(number);
  return {upper_half(high), upper_half(low_part(number, high))};
}

float widen_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

void round_operands(Precision precision, std::int64_t count, const float* from, float* to) {
  if (precision == Precision::fp32) {
    if (from != to) std::copy_n(from, count, to);
  } else if (precision == Precision::bf16) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = round_to_bfloat16(from[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      const float high = round_to_bfloat16(from[i]);
      to[i] = high + low_part(from[i], high);
    }
  }
}

}  // namespace brainfast
