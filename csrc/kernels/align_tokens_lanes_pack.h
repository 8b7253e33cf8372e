// How tokens come into a product: looked at, resampled, and packed as vectors of target pixels.
#pragma once

#include "align_tokens_kernels.h"
#include "lanes.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kAheadTokens = 4096;    // how far before their use tokens are asked for
constexpr int64_t kAheadSteps = 16;       // steps of a product between two lots of such requests
constexpr int64_t kAheadBytes = 1 << 18;  // no more than this for a slice: it has to stay in L2
constexpr int kTileColumns = 2;           // vectors of target pixels in a register tile

template <class M>
BRAINFAST_INLINE typename M::Vector load_loose(const float* from) {
  return *reinterpret_cast<const typename M::Loose*>(from);
}

template <class M>
BRAINFAST_INLINE void store_loose(float* to, typename M::Vector value) {
  *reinterpret_cast<typename M::Loose*>(to) = value;
}

template <class M>
BRAINFAST_INLINE float sum_of(typename M::Vector value) {
  float total = 0;
  for (int i = 0; i < M::kLanes; ++i) total += value[i];
  return total;
}

// window[index[i]], the window being two vectors long.
template <class M>
BRAINFAST_INLINE typename M::Vector pick(const float* window, const std::int32_t* index) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(_mm512_loadu_ps(window), _mm512_loadu_si512(index),
                                _mm512_loadu_ps(window + 16));
#elif defined(__AVX2__)
  const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(window), places);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(window + 8), places);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(places, 28)));
#else
  typename M::Vector found;
  for (int i = 0; i < M::kLanes; ++i) found[i] = window[index[i]];
  return found;
#endif
}

// Sums 0 * x: not zero, because not a number, once an x is not finite.
template <class M>
struct FiniteCheck {
  typename M::Vector sum[2] = {};
  float rest = 0;

  BRAINFAST_INLINE void see(typename M::Vector value) { sum[0] += value * 0.0f; }

  BRAINFAST_INLINE void see(const float* from, int64_t count) {
    int64_t i = 0;
    for (; i + 2 * M::kLanes <= count; i += 2 * M::kLanes) {
      sum[0] += load_loose<M>(from + i) * 0.0f;
      sum[1] += load_loose<M>(from + i + M::kLanes) * 0.0f;
    }
    for (; i < count; ++i) rest += from[i] * 0.0f;
  }

  bool passed() const { return sum_of<M>(sum[0] + sum[1]) + rest == 0.0f; }
};

// The target pixels of a task.
struct PixelBlock {
  int64_t begin, count, vectors;
  int64_t row_begin, row_end;  // of the target grid

  BRAINFAST_INLINE PixelBlock(const AlignLocalTask& task, int lanes)
      : begin(task.block * kAlignPixels),
        count(smaller(kAlignPixels, task.pixels - begin)),
        vectors((count + lanes - 1) / lanes),
        row_begin(begin / task.target_width),
        row_end((begin + count - 1) / task.target_width + 1) {}
};

// Where vector v of channel c lies in a panel [tiles, kAlignSteps, kTileColumns, lanes].
template <class M>
BRAINFAST_INLINE float* panel_place(float* panel, int64_t vector, int64_t channel) {
  const int64_t tile = vector / kTileColumns, column = vector % kTileColumns;
  return panel + ((tile * kAlignSteps + channel) * kTileColumns + column) * M::kLanes;
}

template <class M>
BRAINFAST_INLINE void copy_channel(const PixelBlock& pixels, const float* from, int64_t channel,
                                   float* panel, FiniteCheck<M>& check) {
  from += pixels.begin;
  for (int64_t v = 0; v < pixels.vectors; ++v) {
    float* const to = panel_place<M>(panel, v, channel);
    const int64_t left = pixels.count - v * M::kLanes;
    if (left >= M::kLanes) {
      store<M>(to, load_loose<M>(from + v * M::kLanes));
    } else {
      for (int64_t i = 0; i < M::kLanes; ++i) to[i] = i < left ? from[v * M::kLanes + i] : 0.0f;
    }
    check.see(load<M>(to));
  }
}

// Rows first, in whole vectors that may run into the next row, then columns by permutation.
template <class M>
BRAINFAST_INLINE void resample_windows(const AlignTaps& taps, const PixelBlock& pixels,
                                       const float* from, const float* end, int64_t channel,
                                       float* rows, float* panel, FiniteCheck<M>& check) {
  using Vector = typename M::Vector;
  const bool inside = end - from >= taps.height * taps.width + M::kLanes;
  float* row = rows;
  for (int64_t y = pixels.row_begin; y < pixels.row_end; ++y, row += taps.row_stride) {
    const float *low = from + taps.low_row[y], *high = from + taps.high_row[y];
    const float weight = taps.row_weight[y], rest = 1.0f - weight;
    if (inside) {
      for (int64_t x = 0; x < taps.width; x += M::kLanes) {
        store<M>(row + x, load_loose<M>(low + x) * rest + load_loose<M>(high + x) * weight);
      }
    } else {
      for (int64_t x = 0; x < taps.width; ++x) row[x] = low[x] * rest + high[x] * weight;
    }
  }
  for (int64_t v = 0; v < pixels.vectors; ++v) {
    const int64_t at = pixels.begin + v * M::kLanes;
    const float* const window = rows + taps.window[at / M::kLanes];
    const Vector weight = load<M>(taps.column_weight + at);
    const Vector value = pick<M>(window, taps.low_column + at) * (1.0f - weight) +
                         pick<M>(window, taps.high_column + at) * weight;
    store<M>(panel_place<M>(panel, v, channel), value);
    check.see(value);
  }
}

template <class M>
BRAINFAST_INLINE void resample_single(const AlignTaps& taps, const PixelBlock& pixels,
                                      int64_t target_width, const float* from, int64_t channel,
                                      float* panel) {
  int64_t i = 0;
  for (int64_t y = pixels.row_begin; y < pixels.row_end; ++y) {
    const float *low = from + taps.low_row[y], *high = from + taps.high_row[y];
    const float weight = taps.row_weight[y], rest = 1.0f - weight;
    const int64_t stop = smaller(pixels.count, (y + 1) * target_width - pixels.begin);
    for (; i < stop; ++i) {
      const std::int32_t left = taps.low_column[pixels.begin + i];
      const std::int32_t right = taps.high_column[pixels.begin + i];
      const float across = taps.column_weight[pixels.begin + i];
      const float first = low[left] * rest + high[left] * weight;
      const float second = low[right] * rest + high[right] * weight;
      panel_place<M>(panel, i / M::kLanes, channel)[i % M::kLanes] =
          first * (1.0f - across) + second * across;
    }
  }
  for (; i < pixels.vectors * M::kLanes; ++i) {
    panel_place<M>(panel, i / M::kLanes, channel)[i % M::kLanes] = 0.0f;
  }
}

// A block's own part of a source channel: the parts of all blocks hold each token once.
struct SourcePart {
  int64_t area, begin, end;

  BRAINFAST_INLINE SourcePart(const AlignLocalTask& task, const PixelBlock& pixels)
      : area(task.taps->height * task.taps->width),
        begin(area * pixels.begin / task.pixels),
        end(area * (pixels.begin + pixels.count) / task.pixels) {}
};

// Channels begin..begin+steps, resampled, into the panel.
template <class M>
void pack_panel(const AlignLocalTask& task, const PixelBlock& pixels, int64_t begin, int64_t steps,
                float* rows, float* panel, FiniteCheck<M>& check) {
  constexpr int64_t kLineTokens = 16;
  const AlignTaps& taps = *task.taps;
  const SourcePart part(task, pixels);
  const int64_t ahead = (kAheadTokens + part.area - 1) / part.area * part.area;
  FiniteCheck<M> seen = check;  // stays in registers
  for (int64_t channel = 0; channel < steps; ++channel) {
    const float* const from = task.tokens + (begin + channel) * part.area;
    if (task.end - from > ahead + part.end) {
      for (int64_t i = part.begin; i < part.end; i += kLineTokens) {
        __builtin_prefetch(from + ahead + i);
      }
    }
    if (!taps.reads_all && task.row_begin == 0) {
      seen.see(from + part.begin, part.end - part.begin);
    }
    if (taps.mode == AlignTaps::copy) {
      copy_channel<M>(pixels, from, channel, panel, seen);
    } else if (taps.mode == AlignTaps::windows) {
      resample_windows<M>(taps, pixels, from, task.end, channel, rows, panel, seen);
    } else {
      resample_single<M>(taps, pixels, task.target_width, from, channel, panel);
    }
  }
  check = seen;
}

// Cache lines of the tokens that the next slice packs. Products ask for them a few at a time, for
// packing would wait for memory else.
struct Ahead {
  const char* at = nullptr;
  int64_t lines = 0, stride = 0;   // lines of a channel's part; bytes from channel to channel
  int64_t channels = 0, line = 0;  // channels left, and the line that comes next
  int64_t each = 0;                // lines at a time

  BRAINFAST_INLINE void fetch() {
    for (int64_t i = 0; i < each && channels > 0; ++i) {
      __builtin_prefetch(at + line * 64, 0, 2);
      if (++line == lines) {
        line = 0;
        at += stride;
        --channels;
      }
    }
  }
};

template <class M>
Ahead ahead_of(const AlignLocalTask& task, const PixelBlock& pixels, int64_t begin) {
  const SourcePart part(task, pixels);
  Ahead ahead;
  ahead.lines = ((part.end - part.begin) * sizeof(float) + 63) / 64;
  ahead.stride = part.area * sizeof(float);
  ahead.channels = smaller(kAlignSteps, task.trunk_channels - begin);
  if (ahead.channels <= 0 || ahead.channels * ahead.lines * 64 > kAheadBytes) return {};
  ahead.at = reinterpret_cast<const char*>(task.tokens + begin * part.area + part.begin);
  const int64_t tiles = (task.row_end - task.row_begin + M::kMaxRows - 1) / M::kMaxRows *
                        ((pixels.vectors + kTileColumns - 1) / kTileColumns);
  const int64_t times = tiles * (kAlignSteps / kAheadSteps);
  ahead.each = (ahead.channels * ahead.lines + times - 1) / times;
  return ahead;
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
