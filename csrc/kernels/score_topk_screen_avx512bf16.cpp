// Rounded scores on dot products of bfloat16 pairs or int8 fours: the lanes are objectives, and a
// word of a candidate is multiplied with a word of each of them. How far rounding can move a score
// is in score_topk_screen.h.
#define BRAINFAST_ISA_NAMESPACE topk_screen_avx512bf16
#include <immintrin.h>

#include <cmath>

#include "bfloat16_lanes.h"
#include "score_topk_kernels.h"

namespace brainfast {
namespace topk_screen_avx512bf16 {

constexpr int64_t kPanel = 16;          // objectives side by side; the last panel may have 8
constexpr float kMagic = 0x1p23f;       // above it, float32 counts in ones
constexpr float kLeastTop = 0x1p-100f;  // smaller numbers have no inverse

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

template <class Feature>
void screen_as_bytes(const ScreenTask& task) {
  const auto* const from = static_cast<const Feature*>(task.features);
  Operands x{reinterpret_cast<const char*>(task.operands), task.steps, {}};
  float inverse[kScreenRows];
  for (int64_t r = 0; r < task.rows; ++r) {
    x.units[r] = inverse[r] = 1;
    if constexpr (sizeof(Feature) > 1) {
      const float top = top_of(from + r * task.feature_stride, task.count);
      const bool small = !(top >= kLeastTop);
      inverse[r] = small ? 0 : 127 / top;
      x.units[r] = small ? 2 * top : top / 127;
      // Half a unit and a 256th of one more, for each feature.
      task.deviations[r] += 0.2525f * x.units[r] * x.units[r] * static_cast<float>(task.count);
    }
  }
  for (int64_t r = 0; r < task.rows; ++r) {
    task.squares[r] += x.units[r] * x.units[r] *
                       round_row(from + r * task.feature_stride, task.count, task.steps, inverse[r],
                                 task.operands + r * task.steps);
  }
  add_tiles<ByteDots>(x, task, sizeof(Feature));
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
constexpr ScreenKernels kBFloats = {PairDots::kNumbers, PairDots::kRoundings, pack_as_bfloats,
                                    screen_as_bfloats<Feature>, reach};
template <class Feature>
constexpr ScreenKernels kBytes = {ByteDots::kNumbers, ByteDots::kRoundings, pack_as_bytes,
                                  screen_as_bytes<Feature>, reach};

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
