// What the projection's kernels share: the packed form of filters, maps and tokens.
#pragma once

#include "factor_projection_cuda.h"
#include "image_sums.cuh"

namespace brainfast::cuda {

constexpr int kMapPadding = 16;                   // tokens: columns are multiplied in sixteens
constexpr std::size_t kMostArgumentBytes = 4000;  // of a kernel, and some to spare

// Of one layer. Maps beyond the last token or latent are zero; the rows of a tile are side by side
// as side_by_side has them, but in order in fp32. They are bfloat16 in bf16, else float32.
struct PackedLayer {
  int tokens, channels, slices;
  int padded_tokens;       // a multiple of kMapPadding
  unsigned char* filters;  // [slices,K+1] rows
  unsigned char* maps;     // [tiles,padded_tokens,kTile]
  unsigned char* rows;     // [slices,row_count] rows: (group T + token) lanes + image % lanes
  std::int64_t row_count;  // of a slice, the zero row included
  int first_piece;         // of the partial sums: a slice and a part of the chunks each
  int parts, part_chunks;  // that the chunks of a group of images are cut into
};

struct Projection {
  int latent, layers, tiles;     // of kTile latents
  int images, groups, shift;     // lanes = 1 << shift images side by side
  int unit_groups, group_units;  // groups of images of one unit of work, and how many such
  int pieces;                    // of all layers
  float* bias;                   // [K]
  float* partial;                // [pieces,groups*lanes,tiles*kTile]
  int* counters;                 // [group_units,tiles], zero before the products
  float* latents;                // [B,K]
  PackedLayer layer[kMostProjectionLayers];
};
static_assert(sizeof(Projection) + 32 <= kMostArgumentBytes);

__host__ __device__ constexpr int map_size(Precision precision) {
  return precision == Precision::bf16 ? 2 : 4;
}

// The place in a tile of maps of its row v.
__host__ __device__ constexpr int map_place(Precision precision, int v) {
  return precision == Precision::fp32 ? v : side_by_side(v);
}

// The map of row v of a tile at a token.
template <Precision kPrecision>
__device__ float map_at(const PackedLayer& layer, int tile, int token, int v) {
  const std::int64_t index =
      (static_cast<std::int64_t>(tile) * layer.padded_tokens + token) * kTile +
      map_place(kPrecision, v);
  if constexpr (kPrecision == Precision::bf16) {
    return device::from_bfloat(reinterpret_cast<const unsigned short*>(layer.maps)[index]);
  } else {
    return reinterpret_cast<const float*>(layer.maps)[index];
  }
}

// Starts copying the filters of a tile, kTile rows.
__device__ inline void start_filters(const PackedLayer& layer, int latent, int tile, int slice,
                                     unsigned char* to) {
  copy_rows(to, layer.filters + static_cast<std::int64_t>(slice) * (latent + 1) * kRowBytes, kTile,
            [&](int r) -> std::int64_t {
              const int k = tile * kTile + r;
              return k < latent ? k : latent;
            });
}

// Starts copying `count` columns of a group of images, from `first` on.
__device__ inline void start_tokens(const PackedLayer& layer, int shift, int group, int slice,
                                    int first, int count, unsigned char* to) {
  const std::int64_t columns = static_cast<std::int64_t>(layer.tokens) << shift;
  copy_rows(to, layer.rows + slice * layer.row_count * kRowBytes, count,
            [&](int r) -> std::int64_t {
              return first + r < columns ? group * columns + first + r : layer.row_count - 1;
            });
}

}  // namespace brainfast::cuda
