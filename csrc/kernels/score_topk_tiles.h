// Scores on matrix tiles, over the interface of tile.h: [16 candidates] x [16 objectives]. The
// features of bfloat16 candidates are read where they lie.
//
// Written from the costs of AMX; its speed on such a machine has not been measured.
#pragma once

#include "bfloat16_rows.h"
#include "score_topk_kernels.h"
#include "tile.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kTileDepth = 32;     // features of a tile
constexpr int64_t kTileWords = 256;    // pairs of features, or sums
constexpr int64_t kGroup = kTileRows;  // objectives

// [groups of 16 objectives, steps / 32, parts, 16 pairs, 16 objectives] of pairs
inline void pack_template(const float* from, int64_t count, int64_t steps, int64_t objective,
                          int64_t, int parts, void* to) {
  Word* at = static_cast<Word*>(to) + objective / kGroup * kGroup * parts * steps / 2;
  at += objective % kGroup;
  for (int64_t step = 0; step < steps; step += kTileDepth) {
    float numbers[kTileDepth] = {};
    for (int64_t i = step; i < smaller(step + kTileDepth, count); ++i) numbers[i - step] = from[i];
    for (int part = 0; part < parts; ++part, at += kTileWords) {
      const Words pairs =
          pairs_of_row(load_some(numbers, kVector), load_some(numbers + kVector, kVector), part);
      for (int64_t i = 0; i < kTileDepth / 2; ++i) at[i * kGroup] = pairs[i];
    }
  }
}

// Sixteen rows of 32 features as tile t. An int8 has seven bits and is exact in the eight of a
// bfloat16.
template <int t>
void load_features(Tiles& tiles, const std::uint16_t* from, int64_t stride) {
  tiles.load<t>(from, stride * 2);
}

template <int t>
void load_features(Tiles& tiles, const std::int8_t* from, int64_t stride) {
  alignas(64) std::uint16_t tile[kTileRows][kTileDepth];
  for (int64_t r = 0; r < kTileRows; ++r, from += stride) {
    for (int64_t i = 0; i < kTileDepth; ++i) {
      const auto bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(from[i]));
      tile[r][i] = static_cast<std::uint16_t>(bits >> 16);
    }
  }
  tiles.load<t>(tile, kTileBytes);
}

// Tiles 0..3 hold sums of 2 x 2, 4 and 5 candidates, 6 and 7 templates.
template <class Feature, bool TwoRows, bool TwoColumns>
void add_products(Tiles& tiles, const ScoreTask& task, const Word* w, int64_t group_stride) {
  const auto* x = static_cast<const Feature*>(task.features);
  for (int64_t step = 0; step < task.steps; step += kTileDepth, x += kTileDepth) {
    load_features<4>(tiles, x, task.feature_stride);
    if constexpr (TwoRows) {
      load_features<5>(tiles, x + kTileRows * task.feature_stride, task.feature_stride);
    }
    for (int part = 0; part < task.parts; ++part, w += kTileWords) {
      tiles.load<6>(w, kTileBytes);
      if constexpr (TwoColumns) tiles.load<7>(w + group_stride, kTileBytes);
      tiles.dot<0, 4, 6>();
      if constexpr (TwoColumns) tiles.dot<1, 4, 7>();
      if constexpr (TwoRows) {
        tiles.dot<2, 5, 6>();
        if constexpr (TwoColumns) tiles.dot<3, 5, 7>();
      }
    }
  }
}

inline void add_sums(const ScoreTask& task, const float* sums, int64_t row, int64_t objective) {
  const int64_t rows = smaller(kTileRows, task.rows - row);
  const int64_t columns = smaller(kGroup, task.objectives - objective);
  for (int64_t r = 0; r < rows; ++r, sums += kGroup) {
    float* const to = task.sums + (row + r) * task.objectives + objective;
    for (int64_t c = 0; c < columns; ++c) to[c] += sums[c];
  }
}

template <class Feature, bool TwoRows, bool TwoColumns>
void score_groups(Tiles& tiles, const ScoreTask& task, int64_t objective) {
  const int64_t group_stride = kGroup * task.parts * task.steps / 2;
  const Word* const templates = static_cast<const Word*>(task.templates);
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  add_products<Feature, TwoRows, TwoColumns>(
      tiles, task, templates + objective / kGroup * group_stride, group_stride);
  alignas(64) float sums[4][kTileWords];
  tiles.store<0>(sums[0], kTileBytes);
  tiles.store<1>(sums[1], kTileBytes);
  tiles.store<2>(sums[2], kTileBytes);
  tiles.store<3>(sums[3], kTileBytes);
  for (int i = 0; i < 4; ++i) {
    if ((i < 2 || TwoRows) && (i % 2 == 0 || TwoColumns)) {
      add_sums(task, sums[i], i / 2 * kTileRows, objective + i % 2 * kGroup);
    }
  }
}

template <class Feature>
void score(const ScoreTask& task) {
  Tiles tiles(whole_tiles());
  const bool two_rows = task.rows > kTileRows;
  for (int64_t objective = 0; objective < task.objectives; objective += 2 * kGroup) {
    const bool two_columns = task.objectives - objective > kGroup;
    if (two_rows && two_columns) {
      score_groups<Feature, true, true>(tiles, task, objective);
    } else if (two_rows) {
      score_groups<Feature, true, false>(tiles, task, objective);
    } else if (two_columns) {
      score_groups<Feature, false, true>(tiles, task, objective);
    } else {
      score_groups<Feature, false, false>(tiles, task, objective);
    }
  }
}

template <class Feature>
constexpr ScoreKernels make_tile_kernels() {
  return {kTileDepth,    2 * kTileRows,  kTileRows, kGroup, sizeof(std::uint16_t),
          pack_template, score<Feature>, nullptr};
}

inline const ScoreKernels& tile_kernels_of(FeatureKind kind) {
  static constexpr ScoreKernels bfloats = make_tile_kernels<std::uint16_t>();
  static constexpr ScoreKernels bytes = make_tile_kernels<std::int8_t>();
  return kind == FeatureKind::int8 ? bytes : bfloats;
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
