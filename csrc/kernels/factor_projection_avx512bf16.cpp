// The projection on AVX512-BF16 dot products: a lane multiplies a pair of steps at a time.
#define BRAINFAST_ISA_NAMESPACE projection_avx512bf16
#include "bfloat16_rows.h"
#include "dot_machine.h"
#include "factor_projection_lanes.h"

namespace brainfast {
namespace projection_avx512bf16 {

template <>
struct Outer<DotMachine> {
  static BRAINFAST_INLINE DotMachine::Vector at(const Word* panel, int64_t entry) {
    return number_of_pair(panel, entry);
  }
};

}  // namespace projection_avx512bf16

const BFloatProjectionKernels& bfloat_projection_kernels_avx512bf16() {
  namespace here = projection_avx512bf16;
  static constexpr BFloatProjectionKernels kernels{
      2, 1, here::pack_rows, here::project<here::DotMachine, ProjectionTask<std::uint32_t, float>>};
  return kernels;
}

}  // namespace brainfast
