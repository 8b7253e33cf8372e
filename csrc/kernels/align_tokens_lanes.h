// The kernels of align_tokens, written once over vectors of `lanes` target pixels (local tokens) or
// aligned channels (global ones). Each instruction-set object compiles its own copy, in its own
// namespace (BRAINFAST_ISA_NAMESPACE), with its own flags.
#pragma once

#include "align_tokens_lanes_pack.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

// Where a tile's sums go: partial [rows, kTileColumns, lanes] between slices of channels, and at
// last output [rows, pixels], of which `count` pixels are the tile's.
struct TileTarget {
  bool first, last;
  float* partial;
  const float* offset;  // [rows]
  float* output;
  int64_t pixels, count;
};

// Sums of a slice start at zero and are added up afterwards, which keeps rounding errors small.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void local_tile(const float* weight, const float* panel, int64_t steps,
                                          const TileTarget& target, Ahead& ahead) {
  using Vector = typename M::Vector;
  constexpr int64_t kStride = kTileColumns * M::kLanes;
  Vector sum[Rows][Columns] = {};
  for (int64_t step = 0; step < steps; step += kAheadSteps) {
    ahead.fetch();
    multiply<M, Rows, Columns>(sum, weight + step * Rows, panel + step * kStride,
                               {Rows, 1, kStride, M::kLanes}, smaller(kAheadSteps, steps - step));
  }
  BRAINFAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BRAINFAST_UNROLL
    for (int c = 0; c < Columns; ++c) {
      float* const partial = target.partial + (r * kTileColumns + c) * M::kLanes;
      if (!target.first) sum[r][c] += load<M>(partial);
      if (!target.last) {
        store<M>(partial, sum[r][c]);
        continue;
      }
      const Vector answer = sum[r][c] + target.offset[r];
      float* const to = target.output + r * target.pixels + c * M::kLanes;
      const int64_t left = target.count - c * M::kLanes;
      if (left >= M::kLanes) {
        store_loose<M>(to, answer);
      } else {
        for (int64_t i = 0; i < left; ++i) to[i] = answer[i];
      }
    }
  }
}

template <class M>
int64_t local_scratch(int64_t channels) {
  return kAlignPixels * (kAlignSteps + channels) + kAlignRowBuffer + 2 * M::kLanes;
}

template <class M>
bool local(const AlignLocalTask& task) {
  const PixelBlock pixels(task, M::kLanes);
  float* const panel = task.scratch;                          // [tiles, steps, columns, lanes]
  float* const partial = panel + kAlignPixels * kAlignSteps;  // [tiles, D, columns, lanes]
  float* const rows = partial + kAlignPixels * task.channels;
  FiniteCheck<M> check;
  for (int64_t begin = 0; begin < task.trunk_channels; begin += kAlignSteps) {
    const int64_t steps = smaller(kAlignSteps, task.trunk_channels - begin);
    pack_panel<M>(task, pixels, begin, steps, rows, panel, check);
    const float* const weight = task.weight + begin * task.channels;
    Ahead ahead = ahead_of<M>(task, pixels, begin + steps);
    for (int64_t row = task.row_begin; row < task.row_end; row += M::kMaxRows) {
      with_count<M::kMaxRows>(smaller(M::kMaxRows, task.channels - row), [&](auto count) {
        for (int64_t vector = 0; vector < pixels.vectors; vector += kTileColumns) {
          const int64_t tile = vector / kTileColumns, done = vector * M::kLanes;
          const TileTarget target{begin == 0,
                                  begin + steps == task.trunk_channels,
                                  partial + (tile * task.channels + row) * kTileColumns * M::kLanes,
                                  task.offset + row,
                                  task.output + row * task.pixels + pixels.begin + done,
                                  task.pixels,
                                  pixels.count - done};
          const float* const x = panel_place<M>(panel, vector, 0);
          if (pixels.vectors - vector >= kTileColumns) {
            local_tile<M, count.value, kTileColumns>(weight + row * steps, x, steps, target, ahead);
          } else {
            local_tile<M, count.value, 1>(weight + row * steps, x, steps, target, ahead);
          }
        }
      });
    }
  }
  return check.passed();
}

// output[image, lanes] = tokens[image] . weight + offset for Rows images and Columns vectors;
// weight [C_l, width].
template <class M, int Rows, int Columns>
__attribute__((noinline)) void vector_tile(const AlignVectorTask& task, int64_t image,
                                           int64_t channel, const float* weight, int64_t width) {
  using Vector = typename M::Vector;
  Vector total[Rows][Columns] = {};
  const float* x = task.tokens + image * task.trunk_channels;
  for (int64_t begin = 0; begin < task.trunk_channels; begin += kAlignSteps) {
    const int64_t steps = smaller(kAlignSteps, task.trunk_channels - begin);
    Vector sum[Rows][Columns] = {};
    multiply<M, Rows, Columns>(sum, x + begin, weight + begin * width,
                               {1, task.trunk_channels, width, M::kLanes}, steps);
    for (int i = 0; i < Rows * Columns; ++i) {
      total[i / Columns][i % Columns] += sum[i / Columns][i % Columns];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) {
      const int64_t at = channel + c * M::kLanes;
      float* const to = task.output + (image + r) * task.image_stride + at;
      const int64_t count = smaller(M::kLanes, task.channels - at);
      for (int64_t i = 0; i < count; ++i) to[i] = total[r][c][i] + task.offset[at + i];
    }
  }
}

template <class M>
bool vectors(const AlignVectorTask& task) {
  constexpr int kFewRows = M::kMaxRows / 2;  // that leave registers for four columns
  const int64_t begin = task.block * kAlignColumns * M::kLanes;
  const int64_t left = (task.channels - begin + M::kLanes - 1) / M::kLanes;
  const int64_t columns = smaller(kAlignColumns, left), width = columns * M::kLanes;
  const float* const weight = task.weight + begin * task.trunk_channels;
  for (int64_t image = 0; image < task.images;) {
    const int64_t most =
        columns == kAlignColumns && task.images - image <= kFewRows ? kFewRows : M::kMaxRows;
    const int64_t rows = smaller(most, task.images - image);
    with_count<M::kMaxRows>(rows, [&](auto count) {
      constexpr int kRows = count.value;
      if constexpr (kRows <= kFewRows) {
        if (columns == kAlignColumns) {
          vector_tile<M, kRows, kAlignColumns>(task, image, begin, weight, width);
          return;
        }
      }
      for (int64_t c = 0; c < columns; c += 2) {
        const int64_t channel = begin + c * M::kLanes;
        if (columns - c >= 2) {
          vector_tile<M, kRows, 2>(task, image, channel, weight + c * M::kLanes, width);
        } else {
          vector_tile<M, kRows, 1>(task, image, channel, weight + c * M::kLanes, width);
        }
      }
    });
    image += rows;
  }
  FiniteCheck<M> check;
  if (task.block == 0) check.see(task.tokens, task.images * task.trunk_channels);
  return check.passed();
}

template <class M>
bool pool(const AlignTaps& taps, const float* tokens, int64_t trunk_channels, float* pooled) {
  using Vector = typename M::Vector;
  const int64_t area = taps.height * taps.width;
  FiniteCheck<M> check;
  check.see(tokens, trunk_channels * area);
  for (int64_t channel = 0; channel < trunk_channels; ++channel, tokens += area) {
    Vector sum[2] = {};
    int64_t i = 0;
    for (; i + 2 * M::kLanes <= area; i += 2 * M::kLanes) {
      sum[0] += load_loose<M>(tokens + i) * load_loose<M>(taps.mean + i);
      sum[1] += load_loose<M>(tokens + i + M::kLanes) * load_loose<M>(taps.mean + i + M::kLanes);
    }
    float total = sum_of<M>(sum[0] + sum[1]);
    for (; i < area; ++i) total += tokens[i] * taps.mean[i];
    pooled[channel] = total;
  }
  return check.passed();
}

template <class M>
constexpr AlignKernels make_kernels() {
  return {M::kLanes, M::kMaxRows, local_scratch<M>, local<M>, vectors<M>, pool<M>};
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
