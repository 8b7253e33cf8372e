// Twelve rounded candidates times every rounded template: the lanes are objectives, and a word of a
// candidate is multiplied with a word of each of them.
#pragma once

#include <immintrin.h>

#include "bfloat16_lanes.h"
#include "score_topk_kernels.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kPanel = 16;  // objectives side by side; the last panel may have 8

typedef std::int32_t LooseWord __attribute__((aligned(1), may_alias));

// A packed chunk: units [O] and starts [O] of the padded objectives, then panels
// [steps / numbers, 16 or 8] of words.
template <class To>
To* units_of(To* packed) {
  return packed;
}
template <class To>
To* starts_of(To* packed, int64_t objectives) {
  return packed + objectives;
}
template <class To>
To* panels_of(To* packed, int64_t objectives) {
  return packed + 2 * objectives;
}

BRAINFAST_INLINE int64_t width_of(int64_t panel, int64_t objectives) {
  return smaller(kPanel, objectives - panel * kPanel);
}

// Vectors of words, a lane an objective.
template <int width>
struct Lanes;

template <>
struct Lanes<16> {
  using Ints = __m512i;
  static BRAINFAST_INLINE Ints some(__m512i all) { return all; }
  static BRAINFAST_INLINE Ints load(const void* from) { return _mm512_loadu_si512(from); }
  static BRAINFAST_INLINE void add_to(float* to, __m512 sums) {
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums));
  }
  static BRAINFAST_INLINE __m512 floats(Ints bits) { return _mm512_castsi512_ps(bits); }
  static BRAINFAST_INLINE __m512 numbers(Ints sums, const Word* units, float unit) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(units), _mm512_set1_ps(unit));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scaled);
  }
};

template <>
struct Lanes<8> {
  using Ints = __m256i;
  static BRAINFAST_INLINE Ints some(__m512i all) { return _mm512_castsi512_si256(all); }
  static BRAINFAST_INLINE Ints load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static BRAINFAST_INLINE void add_to(float* to, __m256 sums) {
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums));
  }
  static BRAINFAST_INLINE __m256 floats(Ints bits) { return _mm256_castsi256_ps(bits); }
  static BRAINFAST_INLINE __m256 numbers(Ints sums, const Word* units, float unit) {
    const __m256 scaled =
        _mm256_mul_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(units)), _mm256_set1_ps(unit));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scaled);
  }
};

BRAINFAST_INLINE __m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

struct PairDots {
  static constexpr int kNumbers = 2;
  // Two products and two additions, each rounded at most once.
  static constexpr int kRoundings = 4;
  static constexpr int kLocality = 3;

  template <class Ints>
  static BRAINFAST_INLINE void dot(Ints& sum, Ints x, Ints w) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  }
  template <int width>
  static BRAINFAST_INLINE auto numbers(typename Lanes<width>::Ints sums, const Word*, float) {
    return Lanes<width>::floats(sums);
  }
};

// Sums of whole numbers are exact. Candidates are stored with 128 added, which `starts` takes back.
struct ByteDots {
  static constexpr int kNumbers = 4;
  static constexpr int kRoundings = 0;
  static constexpr int kLocality = 2;

  template <class Ints>
  static BRAINFAST_INLINE void dot(Ints& sum, Ints x, Ints w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  }
  template <int width>
  static BRAINFAST_INLINE auto numbers(typename Lanes<width>::Ints sums, const Word* units,
                                       float unit) {
    return Lanes<width>::numbers(sums, units, unit);
  }
};

// Twelve candidates as words.
struct Operands {
  const char* data;
  int64_t stride;  // bytes
  float units[kScreenRows];
};

// Rows that a later task reads are fetched beside the arithmetic, a line of each at a time: into
// the first cache where they are read as they lie, and else into the second.
struct Ahead {
  const char* data;
  int64_t rows, stride, bytes;  // bytes of a row for one line of operands
};

template <int locality>
BRAINFAST_INLINE void fetch(const Ahead& ahead, int64_t line) {
  for (int64_t r = 0; r < ahead.rows; ++r) {
    const char* const at = ahead.data + r * ahead.stride + line * ahead.bytes;
    for (int64_t byte = 0; byte < ahead.bytes; byte += 64)
      __builtin_prefetch(at + byte, 0, locality);
  }
}

// kScreenRows candidates by a panel of `First` objectives and one of `Second`, which may be none.
template <class Dots, int First, int Second>
__attribute__((noinline)) void add_tile(const Operands& x, const Word* packed, int64_t objective,
                                        int64_t objectives, int64_t words, const Ahead& ahead,
                                        float* sums) {
  using Left = Lanes<First>;
  using Right = Lanes<Second == 0 ? 8 : Second>;
  constexpr int kStreams = kScreenRows / 3, kLine = 16;
  const Word* const starts = starts_of(packed, objectives) + objective;
  const Word* left = panels_of(packed, objectives) + objective * words;
  const Word* right = left + First * words;
  typename Left::Ints first[kScreenRows];
  typename Right::Ints second[kScreenRows];
  BRAINFAST_UNROLL
  for (int r = 0; r < kScreenRows; ++r) {
    first[r] = Left::load(starts);
    if constexpr (Second > 0) second[r] = Right::load(starts + First);
  }
  // Few pointers reach all rows, at one or two strides from each.
  const char* stream[kStreams];
  for (int i = 0; i < kStreams; ++i) stream[i] = x.data + 3 * i * x.stride;
  for (int64_t line = 0; line < words / kLine; ++line) {
    fetch<Dots::kLocality>(ahead, line);
    for (int word = 0; word < kLine; ++word) {
      const auto w = Left::load(left);
      [[maybe_unused]] const auto v = Right::load(Second > 0 ? right : left);
      BRAINFAST_UNROLL
      for (int r = 0; r < kScreenRows; ++r) {
        const auto at = reinterpret_cast<const LooseWord*>(stream[r / 3] + r % 3 * x.stride);
        const __m512i each = _mm512_set1_epi32(*at);
        Dots::dot(first[r], Left::some(each), w);
        if constexpr (Second > 0) Dots::dot(second[r], Right::some(each), v);
      }
      BRAINFAST_UNROLL
      for (int i = 0; i < kStreams; ++i) stream[i] += sizeof(Word);
      left += First;
      right += Second;
    }
  }
  const Word* const units = units_of(packed) + objective;
  float* to = sums + objective;
  BRAINFAST_UNROLL
  for (int r = 0; r < kScreenRows; ++r, to += objectives) {
    Left::add_to(to, Dots::template numbers<First>(first[r], units, x.units[r]));
    if constexpr (Second > 0) {
      Right::add_to(to + First,
                    Dots::template numbers<Second>(second[r], units + First, x.units[r]));
    }
  }
}

template <class Dots>
void add_tiles(const Operands& x, const ScreenTask& task, int64_t feature_bytes) {
  const Word* const packed = static_cast<const Word*>(task.templates);
  const int64_t words = task.steps / Dots::kNumbers, objectives = task.objectives;
  Ahead ahead{task.ahead, task.ahead_rows, task.ahead_stride, 16 * Dots::kNumbers * feature_bytes};
  for (int64_t objective = 0; objective < objectives; objective += 2 * kPanel) {
    const int64_t left = objectives - objective;
    const auto add = left >= 32   ? add_tile<Dots, 16, 16>
                     : left == 24 ? add_tile<Dots, 16, 8>
                     : left == 16 ? add_tile<Dots, 16, 0>
                                  : add_tile<Dots, 8, 0>;
    add(x, packed, objective, objectives, words, ahead, task.sums);
    ahead.rows = 0;
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
