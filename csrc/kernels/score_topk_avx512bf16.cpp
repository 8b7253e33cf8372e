// Scores on AVX512-BF16 dot products: a lane multiplies a pair of features at a time. Templates
// are bfloat16 here.
#define BRAINFAST_ISA_NAMESPACE topk_avx512bf16
#include <immintrin.h>

#include "bfloat16_rows.h"
#include "score_topk_lanes.h"

namespace brainfast {
namespace topk_avx512bf16 {

struct DotScores : FloatScores<16, 4, 6> {
  using Feature = std::uint16_t;
  using Template = std::uint16_t;
  static constexpr int kStep = 32;

  template <int part>
  static BRAINFAST_INLINE __m512bh load_features(const Feature* from) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
  }
  static BRAINFAST_INLINE __m512bh load_template(const Template* from) {
    return reinterpret_cast<__m512bh>(_mm512_load_si512(from));
  }
  static BRAINFAST_INLINE void add_product(Vector& sum, __m512bh a, __m512bh b) {
    sum = reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), a, b));
  }
  static BRAINFAST_INLINE void store_template(const float* from, Template* to) {
    *reinterpret_cast<Words*>(to) =
        pairs_of_row(load_some(from, kVector), load_some(from + kVector, kVector), 0);
  }
};

// An int8 has seven bits and is exact in the eight of a bfloat16.
struct DotInt8Scores : DotScores {
  using Feature = std::int8_t;

  template <int part>
  static BRAINFAST_INLINE __m512bh load_features(const Feature* from) {
    const auto half = [&](int i) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    };
    return _mm512_cvtne2ps_pbh(half(1), half(0));
  }
};

}  // namespace topk_avx512bf16

const ScoreKernels& score_kernels_avx512bf16(FeatureKind kind) {
  namespace here = topk_avx512bf16;
  static constexpr ScoreKernels bfloats = here::make_score_kernels<here::DotScores>();
  static constexpr ScoreKernels bytes = here::make_score_kernels<here::DotInt8Scores>();
  return kind == FeatureKind::int8 ? bytes : bfloats;
}

}  // namespace brainfast
