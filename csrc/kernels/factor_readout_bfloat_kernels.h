// What the readout's bfloat16 objects share. As in factor_readout_kernels.h, no inline function
// lives here.
#pragma once

#include <cstdint>

#include "factor_readout_kernels.h"

namespace brainfast {

// Operands of a sorted readout in bfloat16; groups have 16 lanes and everything else is float32.
// One part holds the rounded numbers; a second one, what they leave over (bf16x3).
//
// Rows of paired vertices: cell c begins at row (group_begin + c) * lanes/2, so that an even number
// of groups fits in every cell.
struct BFloatView {
  ReadoutView<float> sorted;  // without weights
  int parts;                  // 1 or 2
  std::int64_t depth;         // channels, rounded up to what a kernel reads at a time
  std::int64_t pixel_stride;  // elements between the pixels of packed tokens
  std::int64_t part_stride;   // elements between the parts of one image's packed tokens
  std::int64_t image_stride;  // elements between images
  std::int64_t pair_stride;   // words between the rows of paired vertices
  std::int64_t places;        // G * lanes: the response in sorted order
  const std::uint16_t*
      weight;  // [G, parts, depth/2, lanes, 2]: pairs of channels; zeros at the end
};

// Selector and weight gradients of a unit's vertices. Null: not wanted.
struct BFloatVertexTask {
  std::int64_t images;
  const std::uint16_t* tokens;  // as turn_tokens leaves them, or packed where there is none
  const float* grad_output;     // [B, V]
  float* space;
  float* layer;
  float* scale;
  float* weight;
  float* scratch;
};

// Token gradients of one image, channels channel_begin..channel_end. Null: not wanted.
struct BFloatTokenTask {
  std::int64_t channel_begin, channel_end;  // begin: a multiple of 32
  const std::uint32_t* pairs;               // from pair_vertices
  const float* grad_output;                 // [V], this image's
  float* local;                             // [L, D, pixels], this image's
  float* global;                            // [L, D], this image's
  float* scratch;
};

struct BFloatKernels {
  int depth_step;     // depth is a multiple of it
  int unit_vertices;  // vertices of a cell that one task takes
  // Fills in the strides of packed tokens.
  void (*measure)(BFloatView&);
  // Channels channel_begin..channel_end of one image into its packed place. Begin is a multiple of
  // 32; the last piece also fills what pads the channels.
  void (*pack_tokens)(const BFloatView&, const float* local, const float* global,
                      std::int64_t channel_begin, std::int64_t channel_end, std::uint16_t* packed);
  // Rows of `weight` [V,D] -> [parts, depth/2, lanes, 2] for one group of the view.
  void (*pack_weight)(const BFloatView&, std::int64_t group, const float* weight,
                      std::uint16_t* packed);
  // Floats of scratch that a forward unit needs.
  std::int64_t (*forward_scratch)(const BFloatView&);
  // Writes the response of the unit's vertices in sorted order, [B, places].
  void (*forward)(const BFloatView&, const ReadoutUnit&, std::int64_t image_begin,
                  std::int64_t image_end, const std::uint16_t* tokens, float* response,
                  float* scratch);

  // Gradients, of one part. Tokens may be turned first, two images and a pixel at a time: the size
  // is that of two images, zero where the gradients read the packed tokens. `second` may be null.
  std::int64_t (*turned_size)(const BFloatView&);
  void (*turn_tokens)(const BFloatView&, const std::uint16_t* first, const std::uint16_t* second,
                      std::int64_t pixel, std::uint16_t* turned);
  std::int64_t (*vertex_scratch)(const BFloatView&, std::int64_t images);
  void (*vertex_gradients)(const BFloatView&, const ReadoutUnit&, const BFloatVertexTask&);
  // Weights of one group as pairs of vertices, [lanes/2, pair_stride]: D words and zeros.
  void (*pair_vertices)(const BFloatView&, std::int64_t group, std::uint32_t* pairs);
  std::int64_t (*token_scratch)(const BFloatView&, std::int64_t channels);
  void (*token_gradients)(const BFloatView&, const BFloatTokenTask&);
};

const BFloatKernels& bfloat_kernels_avx512bf16();
const BFloatKernels& bfloat_kernels_amx();
const BFloatKernels& bfloat_kernels_amx_emulated();

// Float32 kernels on groups of 16 lanes that any machine runs, for what surrounds emulated tiles.
const ReadoutKernels<float>& readout_kernels_wide();

}  // namespace brainfast
