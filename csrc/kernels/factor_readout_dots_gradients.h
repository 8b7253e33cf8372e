// Gradients of the readout on AVX512-BF16 dot products: those of vertices over pairs of images,
// those of tokens over pairs of vertices.
#pragma once

#include "dot_machine.h"
#include "factor_readout_bfloat_lanes.h"
#include "factor_readout_lanes_tokens.h"
#include "factor_readout_lanes_vertices.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

// Turned tokens: [B/2][pixels + global][Q][D][R] words of two images.
inline int64_t turned_pixel(const BFloatView& view) {
  return view.sorted.blocks * view.sorted.channels * view.sorted.rows;
}

inline int64_t turned_size(const BFloatView& view) {
  return 2 * (view.sorted.pixels + 1) * turned_pixel(view);
}

inline void turn_tokens(const BFloatView& view, const std::uint16_t* first,
                        const std::uint16_t* second, int64_t pixel, std::uint16_t* turned) {
  const int64_t rows = view.sorted.rows, channels = view.sorted.channels;
  const auto* a = reinterpret_cast<const Word*>(first + pixel * view.pixel_stride);
  const auto* b = second ? reinterpret_cast<const Word*>(second + pixel * view.pixel_stride) : a;
  const Word keep = second ? ~Word{0} : Word{0};
  Word* to = reinterpret_cast<Word*>(turned) + pixel * turned_pixel(view);
  for (int64_t block = 0; block < view.sorted.blocks; ++block) {
    for (int64_t d = 0; d < channels; d += 2, a += rows, b += rows) {
      for (int64_t r = 0; r < rows; ++r) to[r] = (a[r] & 0xffffu) | (b[r] & keep) << 16;
      to += rows;
      if (d + 1 == channels) continue;
      for (int64_t r = 0; r < rows; ++r) to[r] = a[r] >> 16 | (b[r] & keep & 0xffff0000u);
      to += rows;
    }
  }
}

struct DotVertexScratch {
  float* weight;       // [D, lanes] over D
  float* grad_weight;  // [D, lanes] times D
  float* sums;         // [slots, Q*R, lanes]
  Word* grad_output;   // [B/2, lanes]
};

inline int64_t vertex_scratch(const BFloatView& view, int64_t images) {
  const ReadoutView<float>& sorted = view.sorted;
  return (2 * sorted.channels + 5 * sorted.blocks * sorted.rows + (images + 1) / 2) * kVector;
}

inline DotVertexScratch carve_vertices(const BFloatView& view, float* at) {
  DotVertexScratch carved{};
  carved.weight = at;
  carved.grad_weight = carved.weight + view.sorted.channels * kVector;
  carved.sums = carved.grad_weight + view.sorted.channels * kVector;
  float* const after = carved.sums + 5 * view.sorted.blocks * view.sorted.rows * kVector;
  carved.grad_output = reinterpret_cast<Word*>(after);
  return carved;
}

inline void widen_weight(const BFloatView& view, int64_t group, float* to) {
  const int64_t words = view.depth / 2;
  const float mean = 1.0f / static_cast<float>(view.sorted.channels);
  const Word* const from = reinterpret_cast<const Word*>(view.weight) + group * words * kVector;
  for (int64_t d = 0; d < view.sorted.channels; ++d) {
    const Words both = *reinterpret_cast<const Words*>(from + d / 2 * kVector);
    const Words bits = d % 2 ? both & 0xffff0000u : both << 16;
    *reinterpret_cast<Floats*>(to + d * kVector) = reinterpret_cast<Floats>(bits) * mean;
  }
}

inline void pair_grads(const BFloatView& view, int64_t group, const BFloatVertexTask& task,
                       Word* to) {
  using M = DotMachine;
  alignas(64) float grad[2][kVector];
  for (int64_t image = 0; image < task.images; image += 2, to += kVector) {
    const float* const from = task.grad_output + image * view.sorted.vertices;
    const bool both = image + 1 < task.images;
    gather_grad<M>(view.sorted, group, from, grad[0]);
    if (both) gather_grad<M>(view.sorted, group, from + view.sorted.vertices, grad[1]);
    const Words second = both ? upper_bfloat16(load<M>(grad[1])) : Words{};
    *reinterpret_cast<Words*>(to) = pair(upper_bfloat16(load<M>(grad[0])), second);
  }
}

template <int Rows>
void vertex_group(const BFloatView& view, const ReadoutCell& cell, int64_t group,
                  const BFloatVertexTask& task) {
  using M = DotMachine;
  const ReadoutView<float>& sorted = view.sorted;
  const DotVertexScratch scratch = carve_vertices(view, task.scratch);
  widen_weight(view, group, scratch.weight);
  pair_grads(view, group, task, scratch.grad_output);
  vertex_sums<M, Rows>(sorted, cell, group, reinterpret_cast<const Word*>(task.tokens),
                       turned_pixel(view), sorted.channels * Rows,
                       (sorted.pixels + 1) * turned_pixel(view), (task.images + 1) / 2,
                       scratch.grad_output, scratch.weight, scratch.sums, scratch.grad_weight);
  if (task.space || task.layer || task.scale) {
    finish_selectors<M>(sorted, cell, group, scratch.sums, task);
  }
  if (task.weight) scatter_weight<M>(sorted, cell, group, scratch.grad_weight, task.weight);
}

inline void vertex_gradients(const BFloatView& view, const ReadoutUnit& unit,
                             const BFloatVertexTask& task) {
  with_count<DotMachine::kMaxRows>(view.sorted.rows, [&](auto rows) {
    for (int64_t group = unit.group_begin; group < unit.group_end; ++group) {
      vertex_group<rows.value>(view, view.sorted.cells[unit.cell], group, task);
    }
  });
}

inline int64_t token_scratch(const BFloatView& view, int64_t channels) {
  return token_scratch<DotMachine>(view.sorted, channels);
}

// coefficients[slot, block][pair, r] = g corner layer of two vertices, rounded.
template <int Rows>
void fill_pair_chunk(const ReadoutView<float>& sorted, const ReadoutCell& cell,
                     const float* grad_output, const TokenScratch<DotMachine>& scratch,
                     int64_t position, int64_t pairs) {
  using M = DotMachine;
  const int64_t padded = sorted.blocks * Rows;
  const __m512i low = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i mix =  // half i of the lower 16, then half i of the upper 16
      _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t first = position + 2 * i, group = first / M::kLanes, lane = first % M::kLanes;
    const std::int32_t* const vertex = sorted.vertex + first;
    const float grad[2] = {vertex[0] < 0 ? 0.0f : grad_output[vertex[0]],
                           vertex[1] < 0 ? 0.0f : grad_output[vertex[1]]};
    const float* const layer = sorted.layer_rows + first * padded;
    const float* const corner = sorted.corner + group * 5 * M::kLanes + lane;
    Word* to = scratch.coefficients + i * Rows;
    for (int slot = 0; slot < cell.slots; ++slot) {
      const float factor = grad[0] * corner[slot * M::kLanes];
      const float factor2 = grad[1] * corner[slot * M::kLanes + 1];
      for (int64_t block = 0; block < sorted.blocks; ++block, to += scratch.plane) {
        // A whole vector: what runs past the row is written again by the next pair, or never read.
        const Floats a = *reinterpret_cast<const LooseFloats*>(layer + block * Rows) * factor;
        const Floats b =
            *reinterpret_cast<const LooseFloats*>(layer + padded + block * Rows) * factor2;
        const __m512bh halves =
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a));
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(mix, reinterpret_cast<__m512i>(halves)));
      }
    }
  }
}

template <int Rows>
void add_pair_cell(const BFloatView& view, int64_t index, const BFloatTokenTask& task,
                   const TokenScratch<DotMachine>& scratch) {
  constexpr int64_t kPairChunk = kTokenChunk;
  const ReadoutCell& cell = view.sorted.cells[index];
  const int64_t position = cell.group_begin * kVector;
  const int64_t row = (cell.group_begin + index) * kVector / 2;
  const int64_t pairs = (cell.vertex_count + 1) / 2;
  for (int64_t begin = 0; begin < pairs; begin += kPairChunk) {
    const int64_t count = smaller(kPairChunk, pairs - begin);
    fill_pair_chunk<Rows>(view.sorted, cell, task.grad_output, scratch, position + 2 * begin,
                          count);
    add_token_chunk<DotMachine, Rows>(
        view.sorted, cell, scratch,
        task.pairs + (row + begin) * view.pair_stride + task.channel_begin, view.pair_stride,
        count);
  }
}

inline void token_gradients(const BFloatView& view, const BFloatTokenTask& task) {
  using M = DotMachine;
  const auto scratch =
      carve_tokens<M>(view.sorted, task.channel_end - task.channel_begin, task.scratch);
  clear_token_sums<M>(view.sorted, scratch);
  with_count<M::kMaxRows>(view.sorted.rows, [&](auto rows) {
    for (int64_t cell = 0; cell < view.sorted.cell_count; ++cell) {
      add_pair_cell<rows.value>(view, cell, task, scratch);
    }
  });
  write_token_sums<M>(view.sorted, task, scratch, 1.0f / static_cast<float>(view.sorted.channels));
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
