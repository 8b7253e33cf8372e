// Packing tokens as bfloat16, on vectors of 16 numbers.
#pragma once

#include "bfloat16_rows.h"
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

// Sixteen rows of sixteen words into columns: a round moves the top bit of the row's number to the
// bottom of the column's, and the other way round.
BRAINFAST_INLINE void transpose_words(Words (&row)[16]) {
  using Mask [[maybe_unused]] = Words;
  for (int round = 0; round < 4; ++round) {
    Words next[16];
    BRAINFAST_UNROLL
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = BRAINFAST_SHUFFLE(Mask, row[i], row[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                      5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = BRAINFAST_SHUFFLE(Mask, row[i], row[i + 8], 8, 24, 9, 25, 10, 26, 11, 27,
                                          12, 28, 13, 29, 14, 30, 15, 31);
    }
    BRAINFAST_UNROLL
    for (int i = 0; i < 16; ++i) row[i] = next[i];
  }
}

// Channels `channel`.. of one vertex: word `i` holds channels 2i and 2i + 1, zeros from `channels`
// on.
BRAINFAST_INLINE Words pair_of_channels(const float* from, int64_t channels, int part) {
  if (channels < 2 * kPairs) return pair_of_row(from, channels > 0 ? channels : 0, part);
  const Floats first = *reinterpret_cast<const LooseFloats*>(from);
  const Floats second = *reinterpret_cast<const LooseFloats*>(from + kVector);
  return pairs_of_row(first, second, part);
}

inline void pack_weight_pairs(const BFloatView& view, int64_t group, const float* weight,
                              std::uint16_t* packed) {
  const int64_t channels = view.sorted.channels, words = view.depth / 2;
  const std::int32_t* const vertex = view.sorted.vertex + group * kVector;
  for (int part = 0; part < view.parts; ++part) {
    Word* const to = reinterpret_cast<Word*>(packed) + part * words * kVector;
    for (int64_t begin = 0; begin < words; begin += kPairs) {
      Words rows[kVector];
      for (int lane = 0; lane < kVector; ++lane) {
        const float* const from = weight + vertex[lane] * channels + 2 * begin;
        rows[lane] =
            vertex[lane] < 0 ? Words{} : pair_of_channels(from, channels - 2 * begin, part);
      }
      transpose_words(rows);
      const int64_t count = smaller(kPairs, words - begin);
      for (int64_t i = 0; i < count; ++i) {
        *reinterpret_cast<Words*>(to + (begin + i) * kVector) = rows[i];
      }
    }
  }
}

// Two rows of 16-bit numbers to words (first, second): the lower and the upper half of the row.
BRAINFAST_INLINE void pair_rows(Words first, Words second, Words (&pairs)[2]) {
  using Mask [[maybe_unused]] = Words;
  const Words even = (first & 0xffffu) | second << 16;
  const Words odd = first >> 16 | (second & 0xffff0000u);
  pairs[0] =
      BRAINFAST_SHUFFLE(Mask, even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  pairs[1] = BRAINFAST_SHUFFLE(Mask, even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                               30, 15, 31);
}

inline void pair_vertices(const BFloatView& view, int64_t group, Word* pairs) {
  const int64_t words = view.depth / 2;
  const Word* const from = reinterpret_cast<const Word*>(view.weight) + group * words * kVector;
  for (int64_t begin = 0; begin < view.pair_stride / 2; begin += kPairs) {
    Words rows[kVector];
    for (int64_t i = 0; i < kPairs; ++i) {
      const bool some = begin + i < words;
      rows[i] = some ? *reinterpret_cast<const Words*>(from + (begin + i) * kVector) : Words{};
    }
    transpose_words(rows);
    for (int64_t i = 0; i < kVector / 2; ++i) {
      Words both[2];
      pair_rows(rows[2 * i], rows[2 * i + 1], both);
      Words* const to = reinterpret_cast<Words*>(pairs + i * view.pair_stride + 2 * begin);
      to[0] = both[0];
      to[1] = both[1];
    }
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
