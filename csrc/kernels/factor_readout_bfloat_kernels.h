// What the readout's bfloat16 objects share. As in factor_readout_kernels.h, no inline function
// lives here.
#pragma once

#include <cstdint>

#include "factor_readout_kernels.h"

namespace brainfast {

// Operands of a sorted readout in bfloat16; groups have 16 lanes and everything else is float32.
// One part holds the rounded numbers; a second one, what they leave over (bf16x3).
struct BFloatView {
  ReadoutView<float> sorted;  // without weights
  int parts;                  // 1 or 2
  std::int64_t depth;         // channels, rounded up to what a kernel reads at a time
  std::int64_t pixel_stride;  // elements between the pixels of packed tokens
  std::int64_t part_stride;   // elements between the parts of one image's packed tokens
  std::int64_t image_stride;  // elements between images
  std::int64_t places;        // G * lanes: the response in sorted order
  const std::uint16_t*
      weight;  // [G, parts, depth/2, lanes, 2]: pairs of channels; zeros at the end
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
  // Floats of scratch that a forward unit needs.
  std::int64_t (*forward_scratch)(const BFloatView&);
  // Writes the response of the unit's vertices in sorted order, [B, places].
  void (*forward)(const BFloatView&, const ReadoutUnit&, std::int64_t image_begin,
                  std::int64_t image_end, const std::uint16_t* tokens, float* response,
                  float* scratch);
};

const BFloatKernels& bfloat_kernels_avx512bf16();
const BFloatKernels& bfloat_kernels_amx();
const BFloatKernels& bfloat_kernels_amx_emulated();

// Float32 kernels on groups of 16 lanes that any machine runs, for what surrounds emulated tiles.
const ReadoutKernels<float>& readout_kernels_wide();

}  // namespace brainfast
