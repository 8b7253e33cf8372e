// Gradients of the tokens on matrix tiles: (g corner layer) [slots x layers, vertices] x weights
// [vertices, channels], a cell at a time.
//
// Written from the costs of AMX; its speed on such a machine has not been measured.
#pragma once

#include "factor_readout_lanes_tokens.h"
#include "factor_readout_tiles_vertices.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kTokenGroups = 16;  // of vertices, at a time
constexpr int64_t kTokenVertices = kTokenGroups * kGroupLanes;

struct TileTokenScratch {
  TokenScratch<TileMachine> sums;
  float* cell;              // [rows, width], rows = slots x layers in whole tiles
  std::uint16_t* products;  // [rows, vertices]
  float* coefficients;      // [slots, L, lanes]
};

inline int64_t whole_rows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

inline int64_t slice_width(int64_t channels) {
  return (channels + kTileDepth - 1) / kTileDepth * kTileDepth;
}

inline int64_t token_sums_size(const BFloatView& view, int64_t width) {
  return (view.sorted.pixels + 1) * view.sorted.blocks * view.sorted.rows * width;
}

inline int64_t token_scratch(const BFloatView& view, int64_t channels) {
  const int64_t width = slice_width(channels), rows = whole_rows(5 * view.sorted.layers);
  return token_sums_size(view, width) + rows * (width + kTokenVertices / 2) +
         5 * view.sorted.layers * kGroupLanes;
}

inline TileTokenScratch carve_tokens(const BFloatView& view, int64_t channels, float* at) {
  const int64_t width = slice_width(channels), rows = whole_rows(5 * view.sorted.layers);
  TileTokenScratch carved{};
  carved.sums = {at, nullptr, width, 0};
  carved.cell = at + token_sums_size(view, width);
  carved.products = reinterpret_cast<std::uint16_t*>(carved.cell + rows * width);
  carved.coefficients = carved.cell + rows * (width + kTokenVertices / 2);
  return carved;
}

// Column block `column` of products [rows, vertices]: one group's g corner layer, or zeros.
inline void fill_products(const BFloatView& view, const ReadoutCell& cell, int64_t group,
                          const float* grad_output, const TileTokenScratch& scratch,
                          int64_t column) {
  const int64_t count = cell.slots * view.sorted.layers, rows = whole_rows(count);
  std::uint16_t* to = scratch.products + column * kGroupLanes;
  const bool real = group < cell.group_end;
  alignas(64) float gathered[kGroupLanes] = {};
  if (real) {
    gather_grad<TileMachine>(view.sorted, group, grad_output, gathered);
    fill_coefficients(view, cell, group, scratch.coefficients);
  }
  const Floats grad = load<TileMachine>(gathered);
  for (int64_t k = 0; k < rows; ++k, to += kTokenVertices) {
    const bool some = real && k < count;
    const float* const coefficient = scratch.coefficients + k * kGroupLanes;
    *reinterpret_cast<Halves*>(to) =
        some ? narrow(upper_bfloat16(grad * load<TileMachine>(coefficient))) : Halves{};
  }
}

// cell [Rows x 2 tiles, width] += products [rows, depth] x pairs [depth/2, channels].
template <int Rows>
void token_tiles(Tiles& tiles, const std::uint16_t* products, const std::uint32_t* pairs,
                 int64_t pair_stride, int64_t depth, float* sums, int64_t width) {
  each<Rows>([&](auto r) {
    constexpr int kRow = decltype(r)::value;
    tiles.load<2 * kRow>(sums + kRow * kTileRows * width, 4 * width);
    tiles.load<2 * kRow + 1>(sums + kRow * kTileRows * width + kTileRows, 4 * width);
  });
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    tiles.load<6>(pairs + k / 2 * pair_stride, 4 * pair_stride);
    tiles.load<7>(pairs + k / 2 * pair_stride + kTileRows, 4 * pair_stride);
    each<Rows>([&](auto r) {
      constexpr int kRow = decltype(r)::value;
      tiles.load<4 + kRow>(products + kRow * kTileRows * kTokenVertices + k, 2 * kTokenVertices);
      tiles.dot<2 * kRow, 4 + kRow, 6>();
      tiles.dot<2 * kRow + 1, 4 + kRow, 7>();
    });
  }
  each<Rows>([&](auto r) {
    constexpr int kRow = decltype(r)::value;
    tiles.store<2 * kRow>(sums + kRow * kTileRows * width, 4 * width);
    tiles.store<2 * kRow + 1>(sums + kRow * kTileRows * width + kTileRows, 4 * width);
  });
}

inline void add_cell(Tiles& tiles, const BFloatView& view, int64_t index,
                     const BFloatTokenTask& task, const TileTokenScratch& scratch) {
  const ReadoutCell& cell = view.sorted.cells[index];
  const int64_t layers = view.sorted.layers, width = scratch.sums.width;
  const int64_t count = cell.slots * layers, rows = whole_rows(count);
  for (int64_t i = 0; i < rows * width; ++i) scratch.cell[i] = 0;
  for (int64_t group = cell.group_begin; group < cell.group_end; group += kTokenGroups) {
    const int64_t groups = (smaller(kTokenGroups, cell.group_end - group) + 1) / 2 * 2;
    for (int64_t i = 0; i < groups; ++i) {
      fill_products(view, cell, group + i, task.grad_output, scratch, i);
    }
    const std::uint32_t* const pairs =
        task.pairs + task.channel_begin + (group + index) * kGroupLanes / 2 * view.pair_stride;
    for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
      for (int64_t d = 0; d < width; d += kTileDepth) {
        with_count<2>(smaller(2, (rows - row) / kTileRows), [&](auto n) {
          token_tiles<decltype(n)::value>(tiles, scratch.products + row * kTokenVertices, pairs + d,
                                          view.pair_stride, groups * kGroupLanes,
                                          scratch.cell + row * width + d, width);
        });
      }
    }
  }
  const int64_t padded = view.sorted.blocks * view.sorted.rows;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t row = cell.pixel[k / layers] * padded + k % layers;
    float* const to = scratch.sums.sums + row * width;
    for (int64_t d = 0; d < width; ++d) to[d] += scratch.cell[k * width + d];
  }
}

inline void token_gradients(const BFloatView& view, const BFloatTokenTask& task) {
  const TileTokenScratch scratch =
      carve_tokens(view, task.channel_end - task.channel_begin, task.scratch);
  clear_token_sums<TileMachine>(view.sorted, scratch.sums);
  Tiles tiles(whole_tiles());
  for (int64_t cell = 0; cell < view.sorted.cell_count; ++cell) {
    add_cell(tiles, view, cell, task, scratch);
  }
  write_token_sums<TileMachine>(view.sorted, task, scratch.sums,
                                1.0f / static_cast<float>(view.sorted.channels));
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
