// The embedding on AVX512-BF16 dot products: a lane multiplies a pair of the latent at a time.
#define BRAINFAST_ISA_NAMESPACE embed_avx512bf16
#include "bfloat16_rows.h"
#include "dot_machine.h"
#include "vertex_embed_lanes.h"

namespace brainfast {
namespace embed_avx512bf16 {

// Pairs of a block of images lie together: [blocks, depth/2, images of the block].
void pack_latent(const float* from, int64_t images, int64_t latent, int64_t depth, int,
                 std::uint16_t* to) {
  constexpr int64_t kRows = DotMachine::kMaxRows;
  Word* const words = reinterpret_cast<Word*>(to);
  for (int64_t image = 0; image < images; ++image) {
    const int64_t block = image / kRows * kRows, rows = smaller(kRows, images - block);
    Word* const at = words + block * (depth / 2) + image - block;
    for (int64_t begin = 0; begin < depth; begin += 2 * kVector) {
      alignas(64) Word pairs[kVector] = {};
      pack_row(from + image * latent + begin, smaller(2 * kVector, latent - begin), 0,
               smaller(2 * kVector, depth - begin), 0, reinterpret_cast<std::uint16_t*>(pairs));
      for (int64_t i = 0; i < smaller(kVector, (depth - begin) / 2); ++i) {
        at[(begin / 2 + i) * rows] = pairs[i];
      }
    }
  }
}

}  // namespace embed_avx512bf16

const BFloatEmbedKernels& bfloat_embed_kernels_avx512bf16() {
  namespace here = embed_avx512bf16;
  static constexpr BFloatEmbedKernels kernels{
      2, 1, here::pack_latent, here::embed<here::DotMachine, EmbedTask<std::uint32_t, float>>};
  return kernels;
}

}  // namespace brainfast
