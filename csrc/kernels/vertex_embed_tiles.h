// The embedding on matrix tiles, over the interface of tile.h: [16 images] x [16 vertices].
//
// Written from the costs of AMX; its speed on such a machine has not been measured.
#pragma once

#include "bfloat16_rows.h"
#include "tile.h"
#include "vertex_embed_kernels.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kTileWords = 256;  // pairs, or sums
constexpr int64_t kTileDepth = 16;   // pairs along the latent

using Task = EmbedTask<std::uint32_t, float>;

// [padded images, parts, depth]; nobody reads what the tiles give for images of padding, which are
// zeros all the same.
inline void pack_latent(const float* from, int64_t images, int64_t latent, int64_t depth, int parts,
                        std::uint16_t* to) {
  const int64_t padded = (images + kTileRows - 1) / kTileRows * kTileRows;
  for (int64_t image = 0; image < padded; ++image) {
    for (int part = 0; part < parts; ++part, to += depth) {
      pack_rows(from + image * latent, image < images ? 1 : 0, latent, 0, 1, depth, part, to);
    }
  }
}

// Tiles 0..3 hold sums of 2 x 2, 4 and 5 images, 6 and 7 weights.
template <bool TwoRows, bool TwoColumns>
void add_products(Tiles& tiles, const std::uint32_t* x, int64_t row_stride, const std::uint32_t* w,
                  int64_t group_stride, int64_t steps) {
  for (int64_t step = 0; step < steps; step += kTileDepth, x += kTileDepth, w += kTileWords) {
    tiles.load<6>(w, kTileBytes);
    if constexpr (TwoColumns) tiles.load<7>(w + group_stride, kTileBytes);
    tiles.load<4>(x, row_stride * 4);
    tiles.dot<0, 4, 6>();
    if constexpr (TwoColumns) tiles.dot<1, 4, 7>();
    if constexpr (TwoRows) {
      tiles.load<5>(x + kTileRows * row_stride, row_stride * 4);
      tiles.dot<2, 5, 6>();
      if constexpr (TwoColumns) tiles.dot<3, 5, 7>();
    }
  }
}

inline void store_sums(const Task& task, const float* sums, int64_t image, int64_t vertex) {
  const int64_t rows = smaller(kTileRows, task.images - image);
  const int64_t lanes = smaller(kVector, task.vertices - vertex);
  for (int64_t r = 0; r < rows; ++r, sums += kVector) {
    float* const to = task.response + (image + r) * task.response_stride + vertex;
    for (int64_t i = 0; i < lanes; ++i) to[i] = sums[i] + (task.bias ? task.bias[vertex + i] : 0);
  }
}

// Up to two tiles of images and two groups of vertices. A second part adds high x low and
// low x high.
template <bool TwoRows, bool TwoColumns>
void embed_block(Tiles& tiles, const Task& task, int64_t image, int64_t group) {
  const int64_t row_stride = task.parts * task.steps, part = task.steps * kVector;
  const auto* const x = task.latent + image * row_stride;
  const auto* const w = task.weight + group * task.parts * part;
  const auto add = [&](const std::uint32_t* some_x, const std::uint32_t* some_w) {
    add_products<TwoRows, TwoColumns>(tiles, some_x, row_stride, some_w, task.parts * part,
                                      task.steps);
  };
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  add(x, w);
  if (task.parts == 2) {
    add(x, w + part);
    add(x + task.steps, w);
  }
  alignas(64) float sums[4][kTileWords];
  tiles.store<0>(sums[0], kTileBytes);
  tiles.store<1>(sums[1], kTileBytes);
  tiles.store<2>(sums[2], kTileBytes);
  tiles.store<3>(sums[3], kTileBytes);
  for (int i = 0; i < 4; ++i) {
    if ((i < 2 || TwoRows) && (i % 2 == 0 || TwoColumns)) {
      store_sums(task, sums[i], image + i / 2 * kTileRows, (group + i % 2) * kVector);
    }
  }
}

inline void embed(const Task& task) {
  Tiles tiles(whole_tiles());
  for (int64_t group = 0; group < task.groups; group += 2) {
    const bool two_columns = group + 1 < task.groups;
    for (int64_t image = 0; image < task.images; image += 2 * kTileRows) {
      const bool two_rows = task.images - image > kTileRows;
      if (two_rows && two_columns) {
        embed_block<true, true>(tiles, task, image, group);
      } else if (two_rows) {
        embed_block<true, false>(tiles, task, image, group);
      } else if (two_columns) {
        embed_block<false, true>(tiles, task, image, group);
      } else {
        embed_block<false, false>(tiles, task, image, group);
      }
    }
  }
}

constexpr BFloatEmbedKernels make_tile_kernels() { return {32, 16, pack_latent, embed}; }

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
