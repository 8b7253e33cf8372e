// Rows of numbers as pairs of bfloat16, and panels of such pairs read back.
#pragma once

#include "bfloat16_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

// The numbers of 16 lanes at one place of a panel [entries/2, 16] of pairs.
BRAINFAST_INLINE Floats number_of_pair(const Word* panel, int64_t entry) {
  const Words pairs = *reinterpret_cast<const Words*>(panel + entry / 2 * kVector);
  const std::uint32_t shift = entry % 2 ? 0u : 16u;
  return reinterpret_cast<Floats>(pairs << shift & 0xffff0000u);
}

// Thirty-two numbers in a row as sixteen pairs.
BRAINFAST_INLINE Words pairs_of_row(Floats first, Floats second, int part) {
  using Mask [[maybe_unused]] = Words;
  const Words low = upper_part(first, part), high = upper_part(second, part);
  const Words even =
      BRAINFAST_SHUFFLE(Mask, low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const Words odd =
      BRAINFAST_SHUFFLE(Mask, low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return pair(even, odd);
}

// One row: `lead` zeros, `steps` numbers, and zeros up to `depth`.
inline void pack_row(const float* from, int64_t steps, int64_t lead, int64_t depth, int part,
                     std::uint16_t* to) {
  int64_t done = 0;
  if (lead == 0) {
    for (; done + 2 * kVector <= steps; done += 2 * kVector) {
      *reinterpret_cast<LooseWords*>(to + done) = pairs_of_row(
          load_some(from + done, kVector), load_some(from + done + kVector, kVector), part);
    }
  }
  for (; done < depth; done += 2 * kVector) {
    alignas(64) float numbers[2 * kVector] = {};
    for (int64_t i = 0; i < 2 * kVector; ++i) {
      const int64_t step = done + i - lead;
      if (step >= 0 && step < steps) numbers[i] = from[step];
    }
    const Words pairs =
        pairs_of_row(load_some(numbers, kVector), load_some(numbers + kVector, kVector), part);
    const int64_t words = smaller(kVector, (depth - done) / 2);
    for (int64_t i = 0; i < words; ++i) reinterpret_cast<Word*>(to + done)[i] = pairs[i];
  }
}

inline void pack_rows(const float* from, int64_t rows, int64_t steps, int64_t lead,
                      int64_t padded_rows, int64_t depth, int part, std::uint16_t* to) {
  for (int64_t row = 0; row < rows; ++row, from += steps, to += depth) {
    pack_row(from, steps, lead, depth, part, to);
  }
  for (int64_t i = 0; i < (padded_rows - rows) * depth; ++i) to[i] = 0;
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
