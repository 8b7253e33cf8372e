// Gradients of what belongs to a vertex, on matrix tiles: the products of the forward again for the
// selectors, and tokens x (g corner layer) for the weights. Rows of both, k, run over images, slots
// of the cell and layers.
//
// Written from the costs of AMX; its speed on such a machine has not been measured.
#pragma once

#include "factor_readout_lanes_vertices.h"
#include "factor_readout_tiles.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

using TileMachine = Machine<float, kGroupLanes, 32, 12>;
constexpr int64_t kTurnedElements = 1 << 16;  // of tokens, that stay in the second-level cache

typedef std::uint16_t Halves __attribute__((vector_size(32), may_alias));

BRAINFAST_INLINE Halves narrow(Words upper) { return __builtin_convertvector(upper >> 16, Halves); }

struct TileVertexScratch {
  float* products;        // what the products of the forward need
  float* grad_output;     // [B, groups, lanes]
  float* sums;            // [groups, slots, Q*R, lanes]
  float* grad_weight;     // [groups, depth, lanes] times D
  float* coefficients;    // [slots, L, lanes]
  std::uint16_t* turned;  // [depth, K]
  Word* grad_products;    // [K/2, lanes], pairs of k
};

inline int64_t whole_depth(int64_t rows) {
  return (rows + kTileDepth - 1) / kTileDepth * kTileDepth;
}

inline int64_t vertex_images(const BFloatView& view, int64_t images) {
  const int64_t fitting = kTurnedElements / (view.depth * 5 * view.sorted.layers);
  return smaller(images, fitting > 1 ? fitting : 1);
}

inline int64_t sums_size(const BFloatView& view) {
  return 5 * view.sorted.blocks * view.sorted.rows * kGroupLanes;
}

inline int64_t vertex_scratch(const BFloatView& view, int64_t images) {
  const int64_t rows = whole_depth(vertex_images(view, images) * 5 * view.sorted.layers);
  return kTokenFloats + 2 * kSumFloats +
         kUnitGroups * ((images + view.depth) * kGroupLanes + sums_size(view)) +
         5 * view.sorted.layers * kGroupLanes + (view.depth + kGroupLanes) * rows / 2;
}

inline TileVertexScratch carve_vertices(const BFloatView& view, int64_t images, float* at) {
  const int64_t rows = whole_depth(vertex_images(view, images) * 5 * view.sorted.layers);
  TileVertexScratch carved{};
  carved.products = at;
  carved.grad_output = carved.products + kTokenFloats + 2 * kSumFloats;
  carved.sums = carved.grad_output + images * kUnitGroups * kGroupLanes;
  carved.grad_weight = carved.sums + kUnitGroups * sums_size(view);
  carved.coefficients = carved.grad_weight + kUnitGroups * view.depth * kGroupLanes;
  float* const turned = carved.coefficients + 5 * view.sorted.layers * kGroupLanes;
  carved.turned = reinterpret_cast<std::uint16_t*>(turned);
  carved.grad_products = reinterpret_cast<Word*>(turned + view.depth * rows / 2);
  return carved;
}

// sums[slot, layer] += g (w . x) over D, as the products come.
struct SelectorFinish {
  void operator()(const Panel& panel, int64_t image, int64_t group, const float* products) const {
    const ReadoutView<float>& sorted = view.sorted;
    const int64_t local = group - unit.group_begin, padded = sorted.blocks * sorted.rows;
    const Floats grad =
        load<TileMachine>(grad_output + (image * kUnitGroups + local) * kGroupLanes) *
        (1.0f / static_cast<float>(sorted.channels));
    float* const to = sums + local * sums_size(view);
    int64_t row = panel.row_begin * kTileRows;
    const int64_t slots = sorted.cells[unit.cell].slots;
    const int64_t end = smaller(row + panel.rows * kTileRows, slots * sorted.layers);
    for (; row < end; ++row, products += kGroupLanes) {
      const int64_t slot = row / sorted.layers, layer = row - slot * sorted.layers;
      float* const sum = to + (slot * padded + layer) * kGroupLanes;
      store<TileMachine>(sum, load<TileMachine>(sum) + grad * load<TileMachine>(products));
    }
  }

  const BFloatView& view;
  const ReadoutUnit& unit;
  const float* grad_output;  // [.., groups, lanes] from the first image on
  float* sums;
};

inline void selector_gradients(Tiles& tiles, const BFloatView& view, const ReadoutUnit& unit,
                               const BFloatVertexTask& task, const TileVertexScratch& scratch) {
  const int64_t groups = unit.group_end - unit.group_begin, size = sums_size(view);
  for (int64_t i = 0; i < groups * size; ++i) scratch.sums[i] = 0;
  SelectorFinish finish{view, unit, scratch.grad_output, scratch.sums};
  UnitProducts work(view, unit, finish, scratch.products);
  const int64_t chunk = work.chunk();
  for (int64_t image = 0; image < task.images; image += chunk) {
    finish.grad_output = scratch.grad_output + image * kUnitGroups * kGroupLanes;
    work.run(tiles, image, smaller(chunk, task.images - image), task.tokens);
  }
  for (int64_t i = 0; i < groups; ++i) {
    finish_selectors<TileMachine>(view.sorted, view.sorted.cells[unit.cell], unit.group_begin + i,
                                  scratch.sums + i * size, task);
  }
}

// Tokens of `images` images as [depth, K]; rows from the last k on are zero.
inline void turn_cell(const BFloatView& view, const ReadoutCell& cell, const std::uint16_t* tokens,
                      int64_t images, int64_t depth, std::uint16_t* turned) {
  const int64_t layers = view.sorted.layers, rows = images * cell.slots * layers;
  for (int64_t begin = 0; begin < depth; begin += kTileRows) {
    const std::uint16_t* from[kTileRows] = {};
    for (int64_t i = 0; i < kTileRows && begin + i < rows; ++i) {
      const int64_t k = begin + i, layer = k % layers, slot = k / layers % cell.slots;
      from[i] = tokens + k / (layers * cell.slots) * view.image_stride +
                cell.pixel[slot] * view.pixel_stride + layer * view.depth;
    }
    for (int64_t d = 0; d < view.depth; d += 2 * kTileRows) {
      Words words[kTileRows];
      for (int64_t i = 0; i < kTileRows; ++i) {
        words[i] = from[i] ? *reinterpret_cast<const Words*>(from[i] + d) : Words{};
      }
      transpose_words(words);
      for (int64_t i = 0; i < kTileRows; ++i) {
        std::uint16_t* const to = turned + (d + 2 * i) * depth + begin;
        *reinterpret_cast<Halves*>(to) = narrow(words[i] << 16);
        *reinterpret_cast<Halves*>(to + depth) = narrow(words[i]);
      }
    }
  }
}

// coefficients [slots, L, lanes] = corner layer of one group.
inline void fill_coefficients(const BFloatView& view, const ReadoutCell& cell, int64_t group,
                              float* coefficients) {
  const ReadoutView<float>& sorted = view.sorted;
  const float* const layers = sorted.layer + group * sorted.blocks * sorted.rows * kGroupLanes;
  for (int slot = 0; slot < cell.slots; ++slot) {
    const Floats corner = load<TileMachine>(sorted.corner + (group * 5 + slot) * kGroupLanes);
    for (int64_t l = 0; l < sorted.layers; ++l, coefficients += kGroupLanes) {
      store<TileMachine>(coefficients, corner * load<TileMachine>(layers + l * kGroupLanes));
    }
  }
}

// Words of g coefficient for k and k + 1, [depth/2, lanes]; grad_output [images, groups, lanes].
inline void fill_grad_products(const float* coefficients, int64_t count, const float* grad_output,
                               int64_t images, int64_t depth, Word* to) {
  int64_t image = 0, row = 0;
  const auto next = [&] {
    if (image == images) return Words{};
    const float* const grad = grad_output + image * kUnitGroups * kGroupLanes;
    const Floats product =
        load<TileMachine>(grad) * load<TileMachine>(coefficients + row * kGroupLanes);
    if (++row == count) {
      row = 0;
      ++image;
    }
    return upper_bfloat16(product);
  };
  for (int64_t k = 0; k < depth; k += 2, to += kGroupLanes) {
    const Words first = next();
    *reinterpret_cast<Words*>(to) = pair(first, next());
  }
}

// sums [Rows tiles of channels][lanes] += turned [channels, depth] x products [depth/2, lanes].
template <int Rows>
void weight_tiles(Tiles& tiles, const std::uint16_t* turned, const Word* products, int64_t depth,
                  float* sums) {
  each<Rows>([&](auto r) {
    constexpr int kRow = decltype(r)::value;
    tiles.load<kRow>(sums + kRow * kTileSums, kTileBytes);
  });
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    tiles.load<6>(products + k / 2 * kGroupLanes, kTileBytes);
    each<Rows>([&](auto r) {
      constexpr int kRow = decltype(r)::value, kTokens = 4 + kRow % 2;
      tiles.load<kTokens>(turned + kRow * kTileRows * depth + k, 2 * depth);
      tiles.dot<kRow, kTokens, 6>();
    });
  }
  each<Rows>([&](auto r) {
    constexpr int kRow = decltype(r)::value;
    tiles.store<kRow>(sums + kRow * kTileSums, kTileBytes);
  });
}

inline void weight_gradients(Tiles& tiles, const BFloatView& view, const ReadoutUnit& unit,
                             const BFloatVertexTask& task, const TileVertexScratch& scratch) {
  const ReadoutCell& cell = view.sorted.cells[unit.cell];
  const int64_t groups = unit.group_end - unit.group_begin, size = view.depth * kGroupLanes;
  const int64_t count = cell.slots * view.sorted.layers, chunk = vertex_images(view, task.images);
  for (int64_t i = 0; i < groups * size; ++i) scratch.grad_weight[i] = 0;
  for (int64_t image = 0; image < task.images; image += chunk) {
    const int64_t images = smaller(chunk, task.images - image), depth = whole_depth(images * count);
    turn_cell(view, cell, task.tokens + image * view.image_stride, images, depth, scratch.turned);
    for (int64_t i = 0; i < groups; ++i) {
      fill_coefficients(view, cell, unit.group_begin + i, scratch.coefficients);
      fill_grad_products(scratch.coefficients, count,
                         scratch.grad_output + (image * kUnitGroups + i) * kGroupLanes, images,
                         depth, scratch.grad_products);
      for (int64_t d = 0; d < view.depth; d += 4 * kTileRows) {
        with_count<4>(smaller(4, (view.depth - d) / kTileRows), [&](auto rows) {
          weight_tiles<decltype(rows)::value>(tiles, scratch.turned + d * depth,
                                              scratch.grad_products, depth,
                                              scratch.grad_weight + i * size + d * kGroupLanes);
        });
      }
    }
  }
  for (int64_t i = 0; i < groups; ++i) {
    scatter_weight<TileMachine>(view.sorted, cell, unit.group_begin + i,
                                scratch.grad_weight + i * size, task.weight);
  }
}

inline void vertex_gradients(const BFloatView& view, const ReadoutUnit& unit,
                             const BFloatVertexTask& task) {
  const TileVertexScratch scratch = carve_vertices(view, task.images, task.scratch);
  for (int64_t image = 0; image < task.images; ++image) {
    for (int64_t group = unit.group_begin; group < unit.group_end; ++group) {
      gather_grad<TileMachine>(
          view.sorted, group, task.grad_output + image * view.sorted.vertices,
          scratch.grad_output + (image * kUnitGroups + group - unit.group_begin) * kGroupLanes);
    }
  }
  Tiles tiles(whole_tiles());
  if (task.space || task.layer || task.scale) {
    selector_gradients(tiles, view, unit, task, scratch);
  }
  if (task.weight) weight_gradients(tiles, view, unit, task, scratch);
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
