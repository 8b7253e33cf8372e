// The readout on matrix tiles, over the interface of tile.h: [rows of tokens] x [16 vertices].
//
// The tokens that a cell reads, corners x layers, are gathered into whole tiles that stay in the
// first-level cache while the groups of vertices pass by; a tile product costs the same for 12 rows
// as for 16, so only the last tile of a cell is not full. Many channels or layers go in panels, one
// after the other. The response of a group is summed while the tiles of the next one are
// multiplied.
//
// Written from the costs of AMX; its speed on such a machine has not been measured.
#pragma once

#include "factor_readout_bfloat_lanes.h"
#include "tile.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kTileElements = 512;  // bfloat16 numbers
constexpr int64_t kTileSums = 256;      // floats
constexpr int64_t kTileDepth = 32;      // channels
constexpr int64_t kSliceSteps = 4;      // tiles along the channels that a panel holds at most
constexpr int64_t kPanelTiles = 32;     // 32 KiB: what a panel of tokens takes of the cache
constexpr int64_t kPanelRows = 8;       // tiles along the rows
constexpr int64_t kPanelImages = 8;
constexpr int64_t kUnitGroups = 32;
constexpr int64_t kGroupLanes = 16;

inline void measure(BFloatView& view) {
  constexpr int64_t kPad = 32;  // spreads the pixels over the sets of the cache
  view.pixel_stride = view.sorted.layers * view.depth + kPad;
  view.part_stride = (view.sorted.pixels + 1) * view.pixel_stride;
  view.image_stride = view.parts * view.part_stride;
}

// One layer's channels into [pixels + global][L][depth], 32 channels from `channel` on.
inline void pack_layer(const BFloatView& view, const float* local, const float* global,
                       int64_t layer, int64_t channel, int part, std::uint16_t* packed) {
  const ReadoutView<float>& sorted = view.sorted;
  const int64_t row = layer * sorted.channels + channel;
  const int64_t channels = smaller(2 * kPairs, sorted.channels - channel);
  std::uint16_t* const to = packed + part * view.part_stride + layer * view.depth + channel;
  for (int64_t begin = 0; begin < sorted.pixels; begin += kVector) {
    const int64_t count = smaller(kVector, sorted.pixels - begin);
    Words pairs[kPairs];
    for (int64_t i = 0; i < kPairs; ++i) {
      const float* const from = local + (row + 2 * i) * sorted.pixels + begin;
      const bool some = 2 * i < channels, both = 2 * i + 1 < channels;
      pairs[i] = some ? pair_of_pixels(from, sorted.pixels, both, count, part) : Words{};
    }
    transpose_words(pairs);
    for (int64_t p = 0; p < count; ++p) {
      *reinterpret_cast<Words*>(to + (begin + p) * view.pixel_stride) = pairs[p];
    }
  }
  *reinterpret_cast<Words*>(to + sorted.pixels * view.pixel_stride) =
      pair_of_row(global + row, channels, part);
}

inline void pack_tokens(const BFloatView& view, const float* local, const float* global,
                        int64_t channel_begin, int64_t, std::uint16_t* packed) {
  for (int part = 0; part < view.parts; ++part) {
    for (int64_t layer = 0; layer < view.sorted.layers; ++layer) {
      pack_layer(view, local, global, layer, channel_begin, part, packed);
    }
  }
}

// A piece of a cell's tokens: tiles along its rows (slot, layer), tiles along the channels.
struct Panel {
  int64_t row_begin, rows;    // tiles
  int64_t step_begin, steps;  // tiles
  bool first, last;           // of the panels of these images

  // Elements of one image's tokens.
  int64_t part_size() const { return rows * steps * kTileElements; }
};

struct TileScratch {
  std::uint16_t* tokens;  // [images, parts, rows, steps] tiles
  float* sums[2];         // [2, rows] tiles
};

constexpr int64_t kTokenFloats = kPanelTiles * kTileElements / 2;
constexpr int64_t kSumFloats = 2 * kPanelRows * kTileSums;
constexpr int64_t kPartialFloats = kPanelImages * kUnitGroups * kGroupLanes;

inline int64_t forward_scratch(const BFloatView&) {
  return kTokenFloats + 2 * kSumFloats + kPartialFloats;
}

inline void gather_tokens(const BFloatView& view, const ReadoutCell& cell, const Panel& panel,
                          const std::uint16_t* tokens, std::uint16_t* to) {
  const int64_t rows = cell.slots * view.sorted.layers;
  for (int64_t i = 0; i < panel.rows * kTileRows; ++i) {
    const int64_t row = panel.row_begin * kTileRows + i;
    const bool real = row < rows;
    const int64_t slot = real ? row / view.sorted.layers : 0;
    const int64_t layer = row - slot * view.sorted.layers;
    const std::uint16_t* const from = tokens + cell.pixel[slot] * view.pixel_stride +
                                      layer * view.depth + panel.step_begin * kTileDepth;
    std::uint16_t* const tile =
        to + i / kTileRows * panel.steps * kTileElements + i % kTileRows * kTileDepth;
    for (int64_t step = 0; step < panel.steps; ++step) {
      *reinterpret_cast<Words*>(tile + step * kTileElements) =
          real ? *reinterpret_cast<const Words*>(from + step * kTileDepth) : Words{};
    }
  }
}

template <int N, class F>
BRAINFAST_INLINE void each(F&& f) {
  if constexpr (N > 1) each<N - 1>(f);
  f(Count<N - 1>{});
}

// One step along the channels. Tiles 0..3 hold Rows x Columns sums, 4 and 5 tokens, 6 and 7
// weights; a single column takes them in turn.
template <int Rows, int Columns, int Turn>
BRAINFAST_INLINE void tile_step(Tiles& tiles, const std::uint16_t* x, int64_t x_row,
                                const std::uint16_t* w, int64_t w_column) {
  constexpr int kFirst = Columns == 1 ? 6 + Turn : 6;
  tiles.load<kFirst>(w, kTileBytes);
  if constexpr (Columns == 2) tiles.load<7>(w + w_column, kTileBytes);
  each<Rows>([&](auto r) {
    constexpr int kRow = decltype(r)::value, kTokens = 4 + kRow % 2;
    tiles.load<kTokens>(x + kRow * x_row, kTileBytes);
    tiles.dot<kRow * Columns, kTokens, kFirst>();
    if constexpr (Columns == 2) tiles.dot<kRow * Columns + 1, kTokens, 7>();
  });
}

// sums [Columns][Rows] tiles, columns `sum_column` apart. A second part adds high x low and
// low x high to high x high.
template <int Rows, int Columns>
void multiply_tiles(Tiles& tiles, const BFloatView& view, const Panel& panel,
                    const std::uint16_t* x, const std::uint16_t* w, float* sums,
                    int64_t sum_column) {
  const int64_t x_row = panel.steps * kTileElements;
  const int64_t w_part = view.depth * kGroupLanes, w_column = view.parts * w_part;
  each<Rows * Columns>([&](auto sum) { tiles.zero<decltype(sum)::value>(); });
  for (int product = 0; product < 2 * view.parts - 1; ++product) {
    const std::uint16_t* const a = x + (product == 2 ? panel.part_size() : 0);
    const std::uint16_t* const b = w + (product == 1 ? w_part : 0);
    int64_t at = 0;
    for (; at + 2 * kTileElements <= x_row; at += 2 * kTileElements) {
      tile_step<Rows, Columns, 0>(tiles, a + at, x_row, b + at, w_column);
      tile_step<Rows, Columns, 1>(tiles, a + at + kTileElements, x_row, b + at + kTileElements,
                                  w_column);
    }
    if (at < x_row) tile_step<Rows, Columns, 0>(tiles, a + at, x_row, b + at, w_column);
  }
  each<Rows * Columns>([&](auto sum) {
    constexpr int kSum = decltype(sum)::value;
    float* const to = sums + kSum % Columns * sum_column + kSum / Columns * kTileSums;
    tiles.store<kSum>(to, kTileBytes);
  });
}

// All rows of a panel for one or two groups of vertices, three or four sums at a time where the
// rows allow: fewer would wait for one another.
inline void multiply_panel(Tiles& tiles, const BFloatView& view, const Panel& panel,
                           const std::uint16_t* x, const std::uint16_t* w, int64_t columns,
                           float* sums) {
  const int64_t most = columns == 2 ? 2 : 4, column = panel.rows * kTileSums;
  for (int64_t row = 0; row < panel.rows;) {
    const int64_t left = panel.rows - row, passes = (left + most - 1) / most;
    const int64_t rows = (left + passes - 1) / passes;
    const std::uint16_t* const from = x + row * panel.steps * kTileElements;
    float* const to = sums + row * kTileSums;
    if (columns == 2) {
      with_count<2>(rows, [&](auto n) {
        multiply_tiles<decltype(n)::value, 2>(tiles, view, panel, from, w, to, column);
      });
    } else {
      with_count<4>(rows, [&](auto n) {
        multiply_tiles<decltype(n)::value, 1>(tiles, view, panel, from, w, to, column);
      });
    }
    row += rows;
  }
}

// sum over the panel's rows of sums x layer x corner, for one group.
inline Floats mix_rows(const BFloatView& view, const ReadoutCell& cell, const Panel& panel,
                       int64_t group, const float* sums) {
  const ReadoutView<float>& sorted = view.sorted;
  const float* const layer = sorted.layer + group * sorted.blocks * sorted.rows * kGroupLanes;
  const float* const corner = sorted.corner + group * 5 * kGroupLanes;
  const auto at = [](const float* from, int64_t i) {
    return *reinterpret_cast<const Floats*>(from + i * kGroupLanes);
  };
  int64_t row = panel.row_begin * kTileRows;
  const int64_t end = smaller(row + panel.rows * kTileRows, cell.slots * sorted.layers);
  Floats answer = {};
  while (row < end) {
    const int64_t slot = row / sorted.layers, first = row - slot * sorted.layers;
    const int64_t count = smaller(sorted.layers - first, end - row);
    Floats mixed = {}, other = {};  // two chains: half the latency
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      mixed += at(sums, i) * at(layer, first + i);
      other += at(sums, i + 1) * at(layer, first + i + 1);
    }
    if (i < count) mixed += at(sums, i) * at(layer, first + i);
    answer += (mixed + other) * at(corner, slot);
    row += count;
    sums += count * kGroupLanes;
  }
  return answer;
}

// Sums that wait for their place in the response.
struct Pending {
  int64_t image, group, columns;
};

// The products of a unit's weights with all tokens that its cell reads. finish(panel, image, group,
// sums) gets those of a group of vertices and the panel's rows; `image` counts from the first one
// that run was given.
template <class Finish>
class UnitProducts {
 public:
  UnitProducts(const BFloatView& view, const ReadoutUnit& unit, Finish& finish, float* scratch)
      : view_(view), cell_(view.sorted.cells[unit.cell]), unit_(unit), finish_(finish) {
    scratch_.tokens = reinterpret_cast<std::uint16_t*>(scratch);
    scratch_.sums[0] = scratch + kTokenFloats;
    scratch_.sums[1] = scratch_.sums[0] + kSumFloats;
    row_tiles_ = (cell_.slots * view.sorted.layers + kTileRows - 1) / kTileRows;
    step_tiles_ = view.depth / kTileDepth;
    steps_ = smaller(step_tiles_, kSliceSteps);
    const int64_t most = smaller(kPanelRows, kPanelTiles / (steps_ * view.parts));
    panels_ = (row_tiles_ + most - 1) / most;
    rows_ = (row_tiles_ + panels_ - 1) / panels_;
  }

  // Images that are held at a time.
  int64_t chunk() const {
    return smaller(kPanelTiles / (rows_ * steps_ * view_.parts), kPanelImages);
  }

  void run(Tiles& tiles, int64_t image_begin, int64_t images, const std::uint16_t* tokens) {
    for (int64_t step = 0; step < step_tiles_; step += steps_) {
      Panel panel{};
      panel.step_begin = step;
      panel.steps = smaller(steps_, step_tiles_ - step);
      for (int64_t left = panels_; left > 0; --left, panel.row_begin += panel.rows) {
        panel.rows = (row_tiles_ - panel.row_begin + left - 1) / left;
        panel.first = step == 0 && left == panels_;
        panel.last = step + steps_ >= step_tiles_ && left == 1;
        run_panel(tiles, panel, image_begin, images, tokens);
      }
    }
  }

 private:
  void run_panel(Tiles& tiles, const Panel& panel, int64_t image_begin, int64_t images,
                 const std::uint16_t* tokens) {
    const int64_t image_size = view_.parts * panel.part_size();
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t part = 0; part < view_.parts; ++part) {
        gather_tokens(view_, cell_, panel,
                      tokens + (image_begin + i) * view_.image_stride + part * view_.part_stride,
                      scratch_.tokens + i * image_size + part * panel.part_size());
      }
    }
    const bool few_rows = panel.rows <= 2 || panel.rows == 5;
    const int64_t group_size = view_.parts * view_.depth * kGroupLanes;
    Pending pending{0, 0, 0};
    int turn = 0;
    for (int64_t group = unit_.group_begin; group < unit_.group_end;) {
      const int64_t columns = smaller(few_rows ? 2 : 1, unit_.group_end - group);
      const std::uint16_t* const weight =
          view_.weight + group * group_size + panel.step_begin * kTileElements;
      for (int64_t i = 0; i < images; ++i) {
        multiply_panel(tiles, view_, panel, scratch_.tokens + i * image_size, weight, columns,
                       scratch_.sums[turn]);
        turn ^= 1;
        finish(panel, pending, scratch_.sums[turn]);
        pending = {i, group, columns};
      }
      group += columns;
    }
    finish(panel, pending, scratch_.sums[turn ^ 1]);
  }

  void finish(const Panel& panel, const Pending& pending, const float* sums) {
    for (int64_t c = 0; c < pending.columns; ++c) {
      finish_(panel, pending.image, pending.group + c, sums + c * panel.rows * kTileSums);
    }
  }

  const BFloatView& view_;
  const ReadoutCell& cell_;
  const ReadoutUnit& unit_;
  Finish& finish_;
  TileScratch scratch_{};
  int64_t row_tiles_, step_tiles_;  // of the cell
  int64_t panels_;                  // along the rows
  int64_t rows_, steps_;            // of a panel, at most
};

// Adds the panels of a response up and puts the bias on the last.
struct ForwardFinish {
  void operator()(const Panel& panel, int64_t image, int64_t group, const float* sums) const {
    const ReadoutCell& cell = view.sorted.cells[unit.cell];
    float* const at = partial + (image * kUnitGroups + group - unit.group_begin) * kGroupLanes;
    Floats answer = mix_rows(view, cell, panel, group, sums);
    if (!panel.first) answer += *reinterpret_cast<const Floats*>(at);
    if (!panel.last) {
      *reinterpret_cast<Floats*>(at) = answer;
      return;
    }
    const float mean = 1.0f / static_cast<float>(view.sorted.channels);
    const float* const bias = view.sorted.bias + group * kGroupLanes;
    float* const to = response + image * view.places;
    *reinterpret_cast<Floats*>(to + group * kGroupLanes) =
        answer * mean + *reinterpret_cast<const Floats*>(bias);
  }

  const BFloatView& view;
  const ReadoutUnit& unit;
  float* response;  // of the first image
  float* partial;   // [images, groups, lanes]
};

inline void forward(const BFloatView& view, const ReadoutUnit& unit, int64_t image_begin,
                    int64_t image_end, const std::uint16_t* tokens, float* response,
                    float* scratch) {
  Tiles tiles(whole_tiles());
  ForwardFinish finish{view, unit, response, scratch + kTokenFloats + 2 * kSumFloats};
  UnitProducts work(view, unit, finish, scratch);
  const int64_t chunk = work.chunk();
  for (int64_t image = image_begin; image < image_end; image += chunk) {
    finish.response = response + image * view.places;
    work.run(tiles, image, smaller(chunk, image_end - image), tokens);
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
