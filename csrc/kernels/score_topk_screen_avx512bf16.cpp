// Rounding candidates and templates to bfloat16 pairs or int8 fours, and which scores of them may
// reach a bar. How far rounding can move a score is in score_topk_screen.h.
#define BRAINFAST_ISA_NAMESPACE topk_screen_avx512bf16
#include <immintrin.h>

#include "score_topk_screen_dots.h"

namespace brainfast {
namespace topk_screen_avx512bf16 {

constexpr float kMagic = 0x1p23f;       // above it, float32 counts in ones
constexpr float kLeastTop = 0x1p-100f;  // smaller numbers have no inverse

// The first `count` numbers, and zeros.
BRAINFAST_INLINE __mmask32 first_of(int64_t count, int64_t most) {
  const auto some = count >= most ? most : count > 0 ? count : 0;
  return static_cast<__mmask32>((std::uint64_t{1} << some) - 1);
}

BRAINFAST_INLINE __m512i load_some_of(const std::uint16_t* from, int64_t count) {
  if (count >= 32) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16(first_of(count, 32), from);
}
BRAINFAST_INLINE __m512 load_some_of(const float* from, int64_t count) {
  if (count >= 16) return _mm512_loadu_ps(from);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_of(count, 16)), from);
}
BRAINFAST_INLINE __m256i load_some_of(const std::int8_t* from, int64_t count) {
  if (count >= 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm256_maskz_loadu_epi8(first_of(count, 32), from);
}

// Thirty-two features as bfloat16.
BRAINFAST_INLINE __m512i bfloats_of(const std::uint16_t* from, int64_t count) {
  return load_some_of(from, count);
}
BRAINFAST_INLINE __m512i bfloats_of(const float* from, int64_t count) {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(load_some_of(from + 16, count - 16), load_some_of(from, count)));
}
BRAINFAST_INLINE __m512i bfloats_of(const std::int8_t* from, int64_t count) {
  const __m256i bytes = load_some_of(from, count);
  const auto half = [](__m128i some) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(some)); };
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(half(_mm256_extracti128_si256(bytes, 1)),
                                                       half(_mm256_castsi256_si128(bytes))));
}

constexpr int kParts = kScreenDepth / 32;  // vectors of pairs

template <class Feature>
void screen_as_bfloats(const ScreenTask& task) {
  const bool where_they_lie = sizeof(Feature) == 2 && !std::is_same_v<Feature, float> &&
                              task.count == task.steps && task.rows == kScreenRows;
  const auto* from = static_cast<const Feature*>(task.features);
  Operands x{reinterpret_cast<const char*>(task.operands), 2 * task.steps, {}};
  if (where_they_lie) x = {reinterpret_cast<const char*>(from), 2 * task.feature_stride, {}};
  for (int64_t r = 0; r < task.rows; ++r, from += task.feature_stride) {
    std::byte* const to = task.operands + r * 2 * task.steps;
    __m512 squares[kParts] = {};
    for (int64_t f = 0; f < task.steps; f += kScreenDepth) {
      BRAINFAST_UNROLL
      for (int i = 0; i < kParts; ++i) {
        const int64_t at = f + 32 * i;
        const __m512i bits = bfloats_of(from + at, task.count - at);
        if (!where_they_lie) _mm512_storeu_si512(to + 2 * at, bits);
        squares[i] = _mm512_dpbf16_ps(squares[i], pairs(bits), pairs(bits));
      }
    }
    const __m512 halves[] = {_mm512_add_ps(squares[0], squares[1]),
                             _mm512_add_ps(squares[2], squares[3])};
    const float square = _mm512_reduce_add_ps(_mm512_add_ps(halves[0], halves[1]));
    task.squares[r] += square;
    // Rounding to nearest moves a number by at most 2^-8 of what it becomes.
    if (sizeof(Feature) == 4) task.deviations[r] += 0x1p-16f * square;
  }
  add_tiles<PairDots>(x, task, sizeof(Feature));
}

// The largest magnitude, NaN and infinity above all.
inline float top_of(const std::uint16_t* from, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i tops[2] = {};
  for (int64_t f = 0; f < count; f += 64) {
    BRAINFAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m512i bits = load_some_of(from + f + 32 * i, count - f - 32 * i);
      tops[i] = _mm512_max_epu16(tops[i], _mm512_and_si512(magnitude, bits));
    }
  }
  const __m512i top = _mm512_max_epu16(tops[0], tops[1]);
  const __m512i odd = _mm512_srli_epi32(top, 16);
  const __m512i even = _mm512_and_si512(top, _mm512_set1_epi32(0xffff));
  return __builtin_bit_cast(float, _mm512_reduce_max_epu32(_mm512_max_epu32(odd, even)) << 16);
}
inline float top_of(const float* from, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top = _mm512_setzero_si512();
  for (int64_t f = 0; f < count; f += 16) {
    const __m512i bits = _mm512_castps_si512(load_some_of(from + f, count - f));
    top = _mm512_max_epu32(top, _mm512_and_si512(magnitude, bits));
  }
  return __builtin_bit_cast(float, _mm512_reduce_max_epu32(top));
}

// The lower halves of the words of two vectors, in order.
BRAINFAST_INLINE __m512i lower_halves(__m512i first, __m512i second) {
  alignas(64) static constexpr std::uint16_t kEven[] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                        22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                        44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  return _mm512_permutex2var_epi16(first, _mm512_load_si512(kEven), second);
}

// Features times `inverse`, to nearest whole numbers, plus 128: the number of ones that float32
// counts above 2^23 are its last bits.
BRAINFAST_INLINE __m512i whole(__m512 numbers, float inverse) {
  return _mm512_castps_si512(
      _mm512_fmadd_ps(numbers, _mm512_set1_ps(inverse), _mm512_set1_ps(kMagic + 128)));
}

// Thirty-two of them as the lower halves of words.
BRAINFAST_INLINE __m512i pairs_of_bytes(const std::uint16_t* from, int64_t count, float inverse) {
  const __m512i bits = load_some_of(from, count);
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
  // The odd ones in the second byte; below it are 256ths, with a half so that the cut rounds.
  const __m512 high =
      _mm512_fmadd_ps(odd, _mm512_set1_ps(256 * inverse), _mm512_set1_ps(kMagic + 256 * 128 + 128));
  constexpr int kChoose = 0xca;  // the second where the first has a bit, and else the third
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xff), whole(even, inverse),
                                   _mm512_castps_si512(high), kChoose);
}

// Sixty-four of them.
BRAINFAST_INLINE __m512i bytes_of(const std::uint16_t* from, int64_t count, float inverse) {
  return lower_halves(pairs_of_bytes(from, count, inverse),
                      pairs_of_bytes(from + 32, count - 32, inverse));
}
BRAINFAST_INLINE __m512i bytes_of(const float* from, int64_t count, float inverse) {
  __m256i half[2];
  BRAINFAST_UNROLL
  for (int i = 0; i < 2; ++i, from += 32, count -= 32) {
    half[i] =
        _mm512_cvtepi16_epi8(lower_halves(whole(load_some_of(from, count), inverse),
                                          whole(load_some_of(from + 16, count - 16), inverse)));
  }
  return _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
}
BRAINFAST_INLINE __m512i bytes_of(const std::int8_t* from, int64_t count, float) {
  const __m512i bytes = count >= 64 ? _mm512_loadu_si512(from)
                                    : _mm512_maskz_loadu_epi8(
                                          (std::uint64_t{1} << (count > 0 ? count : 0)) - 1, from);
  return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
}

// Sixteen sums of squares of 64 whole numbers; `least` is whether -128 is among them, of which the
// other form has no magnitude.
template <bool least>
BRAINFAST_INLINE __m512i add_squares(__m512i sum, __m512i bytes) {
  if constexpr (least) {
    const __m512i low = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes));
    const __m512i high = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(bytes, 1));
    return _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(sum, low, low), high, high);
  } else {
    const __m512i magnitudes = _mm512_abs_epi8(bytes);
    return _mm512_dpbusd_epi32(sum, magnitudes, magnitudes);
  }
}

// One row as bytes; returns the sum of their squares.
template <class Feature>
float round_row(const Feature* from, int64_t count, int64_t steps, float inverse, std::byte* to) {
  __m512i squares = _mm512_setzero_si512();
  for (int64_t f = 0; f < steps; f += 64) {
    const __m512i bytes = bytes_of(from + f, count - f, inverse);
    _mm512_storeu_si512(to + f, bytes);
    squares =
        add_squares<sizeof(Feature) == 1>(squares, _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
  }
  return static_cast<float>(_mm512_reduce_add_epi32(squares));
}

// Sixteen features as float32.
BRAINFAST_INLINE __m512 floats_of(const std::uint16_t* from, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_of(count, 16)), from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
BRAINFAST_INLINE __m512 floats_of(const float* from, int64_t count) {
  return load_some_of(from, count);
}
BRAINFAST_INLINE __m512 floats_of(const std::int8_t* from, int64_t count) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
      _mm_maskz_loadu_epi8(static_cast<__mmask16>(first_of(count, 16)), from)));
}

// The square of the norm of what rounding changed in one row, itself rounded up.
template <class Feature>
float deviation_of(const Feature* from, const std::byte* bytes, int64_t count, float unit) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t f = 0; f < count; f += 16) {
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + f));
    const __m512i counts = _mm512_sub_epi32(_mm512_cvtepu8_epi32(some), _mm512_set1_epi32(128));
    // Beyond `count` both are zero.
    const __m512 left = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(counts), _mm512_set1_ps(unit),
                                         floats_of(from + f, count - f));
    squares = _mm512_fmadd_ps(left, left, squares);
  }
  return (1 + 0x1p-8f) * _mm512_reduce_add_ps(squares);
}

template <class Feature>
void round_to_bytes(const ScreenTask& task, std::byte* operands, float* units) {
  const auto* const from = static_cast<const Feature*>(task.features);
  float inverse[kScreenRows];
  for (int64_t r = 0; r < task.rows; ++r) {
    units[r] = inverse[r] = 1;
    if constexpr (sizeof(Feature) > 1) {
      const float top = top_of(from + r * task.feature_stride, task.count);
      const bool small = !(top >= kLeastTop);
      inverse[r] = small ? 0 : 127 / top;
      units[r] = small ? 2 * top : top / 127;
      // Half a unit and a 256th of one more, for each feature.
      task.deviations[r] += 0.2525f * units[r] * units[r] * static_cast<float>(task.count);
    }
  }
  for (int64_t r = 0; r < task.rows; ++r) {
    task.squares[r] += units[r] * units[r] *
                       round_row(from + r * task.feature_stride, task.count, task.steps, inverse[r],
                                 operands + r * task.steps);
  }
}

void multiply_bytes(const ScreenTask& task, const std::byte* operands, const float* units,
                    int64_t ahead_bytes) {
  Operands x{reinterpret_cast<const char*>(operands), task.steps, {}};
  for (int64_t r = 0; r < task.rows; ++r) x.units[r] = units[r];
  add_tiles<ByteDots>(x, task, ahead_bytes);
}

template <class Feature>
void screen_as_bytes(const ScreenTask& task) {
  float units[kScreenRows];
  round_to_bytes<Feature>(task, task.operands, units);
  multiply_bytes(task, task.operands, units, sizeof(Feature));
}

// For rows that are kept there is time to see how much rounding changed.
template <class Feature>
void round_and_measure(const ScreenTask& task, std::byte* operands, float* units) {
  float bounds[kScreenRows] = {};
  ScreenTask rounded = task;
  rounded.deviations = bounds;
  round_to_bytes<Feature>(rounded, operands, units);
  const auto* const from = static_cast<const Feature*>(task.features);
  for (int64_t r = 0; r < task.rows; ++r) {
    const float measured = deviation_of(from + r * task.feature_stride, operands + r * task.steps,
                                        task.count, units[r]);
    // What vanishes in squares, or is no number, leaves the bound.
    const bool tells = measured > 0x1p-100f && measured < bounds[r];
    task.deviations[r] += tells ? measured : bounds[r];
  }
}

void multiply_rounded(const ScreenTask& task, const std::byte* operands, const float* units) {
  multiply_bytes(task, operands, units, 1);
}

void reach(const ReachTask& task) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 largest = _mm256_set1_ps(__FLT_MAX__), infinity = _mm256_set1_ps(__builtin_inff());
  const __m256 scale = _mm256_set1_ps(task.scale);
  const __m256 norm = _mm256_set1_ps(task.norm), deviation = _mm256_set1_ps(task.deviation);
  for (int64_t o = 0; o < task.objectives; o += kScreenColumns) {
    __m256 bound =
        _mm256_fmadd_ps(norm, _mm256_loadu_ps(task.of_norm + o), _mm256_loadu_ps(task.least + o));
    bound = _mm256_fmadd_ps(deviation, _mm256_loadu_ps(task.of_deviation + o), bound);
    const __m256 score = _mm256_mul_ps(_mm256_loadu_ps(task.sums + o), scale);
    // Scaling may lose what is subnormal. A score that is not finite says nothing.
    const __m256 most = _mm256_add_ps(
        _mm256_fmadd_ps(bound, _mm256_and_ps(scale, magnitude), score), _mm256_set1_ps(0x1p-140f));
    const __mmask8 finite =
        _mm256_cmp_ps_mask(_mm256_and_ps(score, magnitude), largest, _CMP_LE_OQ);
    const __m256 upper = _mm256_mask_blend_ps(finite, infinity, most);
    _mm256_storeu_ps(task.sums + o, upper);
    // A NaN stays in.
    const __mmask8 out = _mm256_cmp_ps_mask(upper, _mm256_loadu_ps(task.bars + o), _CMP_LT_OQ);
    task.reached[o / kScreenColumns] = static_cast<std::uint8_t>(~out);
  }
}

// One objective's column of its panel.
Word* column_of(Word* packed, int64_t objective, int64_t objectives, int64_t words) {
  return panels_of(packed, objectives) + objective / kPanel * kPanel * words + objective % kPanel;
}

void pack_as_bfloats(float* numbers, int64_t count, int64_t steps, int64_t objective,
                     int64_t objectives, void* to) {
  Word* const packed = static_cast<Word*>(to);
  const int64_t width = width_of(objective / kPanel, objectives);
  units_of(packed)[objective] = starts_of(packed, objectives)[objective] = 0;
  Word* column = column_of(packed, objective, objectives, steps / 2);
  const auto rounded = [&](int64_t i) -> Word {
    if (i >= count) return 0;
    const auto bits = __builtin_bit_cast(std::uint32_t, numbers[i]);
    const bool number = numbers[i] == numbers[i];
    Word upper = number ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : bits >> 16 | 0x40u;
    if ((upper & 0x7f80u) == 0) upper = 0;  // the dot product takes subnormal numbers as zero
    numbers[i] -= __builtin_bit_cast(float, upper << 16);
    return upper;
  };
  for (int64_t i = 0; i < steps; i += 2, column += width) {
    const Word low = rounded(i);
    *column = low | rounded(i + 1) << 16;
  }
}

void pack_as_bytes(float* numbers, int64_t count, int64_t steps, int64_t objective,
                   int64_t objectives, void* to) {
  Word* const packed = static_cast<Word*>(to);
  const int64_t width = width_of(objective / kPanel, objectives);
  const float top = top_of(numbers, count);
  const bool fits = top >= kLeastTop && top <= __FLT_MAX__;
  const float inverse = fits ? 127 / top : 0, unit = fits ? top / 127 : 0;
  std::int32_t total = 0;
  Word* column = column_of(packed, objective, objectives, steps / 4);
  for (int64_t i = 0; i < steps; i += 4, column += width) {
    Word word = 0;
    for (int64_t j = i; j < smaller(i + 4, count); ++j) {
      const int whole = fits ? static_cast<int>(__builtin_rintf(numbers[j] * inverse)) : 0;
      numbers[j] -= unit * static_cast<float>(whole);
      total += whole;
      word |= (static_cast<Word>(whole) & 0xffu) << 8 * (j - i);
    }
    *column = word;
  }
  units_of(packed)[objective] = __builtin_bit_cast(Word, unit);
  starts_of(packed, objectives)[objective] = static_cast<Word>(-128 * total);
}

template <class Feature>
constexpr ScreenKernels kBFloats = {PairDots::kNumbers,
                                    PairDots::kRoundings,
                                    pack_as_bfloats,
                                    screen_as_bfloats<Feature>,
                                    nullptr,
                                    nullptr,
                                    reach};
template <class Feature>
constexpr ScreenKernels kBytes = {
    ByteDots::kNumbers,         ByteDots::kRoundings, pack_as_bytes, screen_as_bytes<Feature>,
    round_and_measure<Feature>, multiply_rounded,     reach};

template <class Feature>
const ScreenKernels& kernels_as(Rounding rounding) {
  return rounding == Rounding::int8 ? kBytes<Feature> : kBFloats<Feature>;
}

}  // namespace topk_screen_avx512bf16

const ScreenKernels& screen_kernels_avx512bf16(FeatureKind kind, Rounding rounding) {
  namespace here = topk_screen_avx512bf16;
  switch (kind) {
    case FeatureKind::bfloat16:
      return here::kernels_as<std::uint16_t>(rounding);
    case FeatureKind::int8:
      return here::kernels_as<std::int8_t>(rounding);
    default:
      return here::kernels_as<float>(rounding);
  }
}

}  // namespace brainfast
