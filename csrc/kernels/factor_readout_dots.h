// AVX512-BF16 dot products: a lane multiplies a pair of bfloat16 at a time.
#pragma once

#include <immintrin.h>

#include "factor_readout_bfloat_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

struct DotMachine : Machine<float, 16, 32, 12> {
  using Operand = Word;

  static BRAINFAST_INLINE __m512bh load_operands(const Word* from) {
    return reinterpret_cast<__m512bh>(_mm512_load_si512(from));
  }
  static BRAINFAST_INLINE void add_product(Vector& sum, __m512bh lanes_operand, Word operand) {
    const __m512i pairs = _mm512_set1_epi32(static_cast<int>(operand));
    sum = reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), lanes_operand,
                                                    reinterpret_cast<__m512bh>(pairs)));
  }
};

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
