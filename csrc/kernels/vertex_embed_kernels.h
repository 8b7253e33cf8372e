// What the embedding's instruction-set objects share: plain structures and tables of functions. No
// inline function lives here, so that none is compiled with one object's flags and run by another.
#pragma once

#include <cstdint>

namespace brainfast {

// Neighbouring groups of vertices for every image. An operand is one number, or a pair of bfloat16
// along the latent; then `steps` counts pairs.
template <class Operand, class Sum>
struct EmbedTask {
  std::int64_t images, steps;
  int parts;              // 1, or 2 with the low halves of bf16x3 behind the high ones
  const Operand* latent;  // packed
  const Operand* weight;  // [groups, parts, steps, lanes]
  std::int64_t groups;
  std::int64_t vertices;  // those that are not padding
  const Sum* bias;        // [vertices], or null
  Sum* response;          // [images, response_stride]
  std::int64_t response_stride;
};

template <class T>
struct EmbedKernels {
  int lanes;
  int max_rows;  // images are packed in blocks of it, [blocks, steps, images of the block]

  void (*pack)(const T* from, std::int64_t row_stride, std::int64_t rows, std::int64_t steps,
               T* to);
  // [steps, lanes] -> rows of `columns` steps, `to_stride` apart.
  void (*unpack)(const T* from, std::int64_t lanes, std::int64_t columns, T* to,
                 std::int64_t to_stride);
  void (*embed)(const EmbedTask<T, T>&);
  // sums [rows, 2 * lanes] += x [steps, rows] x w [steps, 2 * lanes].
  void (*accumulate)(const T* x, const T* w, std::int64_t rows, std::int64_t steps, T* sums);
};

struct BFloatEmbedKernels {
  int depth_step;  // the latent is padded to a multiple of it, in numbers
  int row_step;    // room for packed images is a multiple of it

  // [images, K] -> packed, room for [padded images, parts, depth]. Zeros pad the latent.
  void (*pack_latent)(const float* from, std::int64_t images, std::int64_t latent,
                      std::int64_t depth, int parts, std::uint16_t* to);
  void (*embed)(const EmbedTask<std::uint32_t, float>&);
};

const EmbedKernels<float>& embed_kernels_portable();
const EmbedKernels<double>& embed_kernels_portable_double();
const EmbedKernels<float>& embed_kernels_avx2();
const EmbedKernels<float>& embed_kernels_avx512();
const BFloatEmbedKernels& bfloat_embed_kernels_avx512bf16();
const BFloatEmbedKernels& bfloat_embed_kernels_amx();
const BFloatEmbedKernels& bfloat_embed_kernels_amx_emulated();

}  // namespace brainfast
