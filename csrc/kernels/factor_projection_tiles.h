// The projection on matrix tiles, over the interface of tile.h: [16 rows of tokens] x [16 entries
// of the latent]. The sums of a block of tiles meet the outer factor while the next block is
// multiplied.
//
// Written from the costs of AMX; its speed on such a machine has not been measured.
#pragma once

#include "bfloat16_rows.h"
#include "factor_projection_kernels.h"
#include "tile.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kTileWords = 256;  // pairs, or sums
constexpr int64_t kTileDepth = 16;   // pairs along the steps
constexpr int64_t kSliceTiles = 12;  // along the steps: two panels of them take 24 KiB
constexpr int64_t kBlockSums = 4 * kTileWords;

using Piece = ProjectionPiece<std::uint32_t>;
using Task = ProjectionTask<std::uint32_t, float>;

// Up to two tiles of rows and two groups of the latent, over a slice of the steps.
struct Block {
  const Piece* piece;
  int64_t image, group, row, rows, columns;  // rows: those that are not padding
  int64_t step, tiles;
};

// Tiles 0..3 hold 2 x 2 sums, 4 and 5 tokens, 6 and 7 the inner factor.
template <bool TwoRows, bool TwoColumns>
BRAINFAST_INLINE void add_products(Tiles& tiles, const Block& block, const std::uint32_t* x,
                                   const std::uint32_t* w) {
  const int64_t row_stride = block.piece->row_stride;
  for (int64_t i = 0; i < block.tiles; ++i, x += kTileDepth, w += kTileWords) {
    tiles.load<6>(w, kTileBytes);
    if constexpr (TwoColumns) tiles.load<7>(w + block.piece->inner_stride, kTileBytes);
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

// sums [2 rows][2 columns] tiles. A second part adds high x low and low x high.
template <bool TwoRows, bool TwoColumns>
void multiply_block(Tiles& tiles, const Block& block, int parts, float* sums) {
  const Piece& piece = *block.piece;
  const auto* const x = piece.tokens + block.image * piece.image_stride +
                        block.row * piece.row_stride + block.step * kTileDepth;
  const auto* const w = piece.inner + block.group * piece.inner_stride + block.step * kTileWords;
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  add_products<TwoRows, TwoColumns>(tiles, block, x, w);
  if (parts == 2) {
    add_products<TwoRows, TwoColumns>(tiles, block, x, w + piece.inner_part);
    add_products<TwoRows, TwoColumns>(tiles, block, x + piece.token_part, w);
  }
  tiles.store<0>(sums, kTileBytes);
  if constexpr (TwoColumns) tiles.store<1>(sums + kTileWords, kTileBytes);
  if constexpr (TwoRows) tiles.store<2>(sums + 2 * kTileWords, kTileBytes);
  if constexpr (TwoRows && TwoColumns) tiles.store<3>(sums + 3 * kTileWords, kTileBytes);
}

inline void multiply_any(Tiles& tiles, const Block& block, int parts, float* sums) {
  const bool two_rows = block.rows > kTileRows, two_columns = block.columns > 1;
  if (two_rows && two_columns) {
    multiply_block<true, true>(tiles, block, parts, sums);
  } else if (two_rows) {
    multiply_block<true, false>(tiles, block, parts, sums);
  } else if (two_columns) {
    multiply_block<false, true>(tiles, block, parts, sums);
  } else {
    multiply_block<false, false>(tiles, block, parts, sums);
  }
}

// What a block's rows give, times their outer factor, goes to the task's sums.
inline void finish_block(const Task& task, const Block& block, const float* sums) {
  const Piece& piece = *block.piece;
  for (int64_t c = 0; c < block.columns; ++c) {
    const auto* const outer = piece.outer + (block.group + c) * piece.outer_stride;
    float* const to = task.sums + block.image * task.sum_stride + (block.group + c) * kVector;
    Floats chain[2] = {*reinterpret_cast<const Floats*>(to)};
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t entry = piece.outer_begin + block.row + r;
      Floats factor = number_of_pair(outer, entry);
      if (task.parts == 2) factor += number_of_pair(outer + piece.outer_part, entry);
      const float* const from =
          sums + (r / kTileRows * 2 + c) * kTileWords + r % kTileRows * kVector;
      chain[r % 2] += *reinterpret_cast<const Floats*>(from) * factor;
    }
    *reinterpret_cast<Floats*>(to) = chain[0] + chain[1];
  }
}

// Calls f(block) for the blocks of one image, two groups and one slice after the other.
template <class F>
void each_block(const Task& task, const Piece& piece, F&& f) {
  const int64_t depth = piece.steps / kTileDepth;
  for (int64_t step = 0; step < depth; step += kSliceTiles) {
    for (int64_t image = task.image_begin; image < task.image_end; ++image) {
      for (int64_t group = task.group_begin; group < task.group_end; group += 2) {
        for (int64_t row = 0; row < piece.rows; row += 2 * kTileRows) {
          f(Block{&piece, image, group, row, smaller(2 * kTileRows, piece.rows - row),
                  smaller(2, task.group_end - group), step, smaller(kSliceTiles, depth - step)});
        }
      }
    }
  }
}

inline void project(const Task& task) {
  Tiles tiles(whole_tiles());
  alignas(64) float sums[2][kBlockSums];
  Block pending{};
  int turn = 0;
  for (int64_t i = 0; i < task.piece_count; ++i) {
    each_block(task, task.pieces[i], [&](const Block& block) {
      multiply_any(tiles, block, task.parts, sums[turn]);
      turn ^= 1;
      if (pending.piece) finish_block(task, pending, sums[turn]);
      pending = block;
    });
  }
  if (pending.piece) finish_block(task, pending, sums[turn ^ 1]);
}

constexpr BFloatProjectionKernels make_tile_kernels() { return {32, 16, pack_rows, project}; }

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
