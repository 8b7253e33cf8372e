// Gradients of the tokens, as a matrix product over vectors of channels: coefficients x weights.
#pragma once

#include "factor_readout_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kTokenChunk = 128;  // vertices at a time

template <class M>
int64_t whole_vectors(int64_t channels) {
  return (channels + M::kLanes - 1) / M::kLanes * M::kLanes;
}

// Weights over D of one group as rows of whole vectors, in the sorted order of vertices.
template <class M>
void sort_weight(const ReadoutView<typename M::Scalar>& view, int64_t group,
                 typename M::Scalar* sorted) {
  using T = typename M::Scalar;
  const T mean = T(1) / static_cast<T>(view.channels);
  for (int64_t lane = 0; lane < M::kLanes; ++lane) {
    const int64_t vertex = view.vertex[group * M::kLanes + lane];
    T* const row = sorted + lane * view.sorted_stride;
    if (vertex < 0) return;  // nobody reads the rows of padding
    if (view.packed_weight) {
      const T* const from = view.packed_weight + group * view.channels * M::kLanes + lane;
      for (int64_t d = 0; d < view.channels; ++d) row[d] = from[d * M::kLanes];
    } else {
      const T* const from = view.weight + vertex * view.channels;
      for (int64_t d = 0; d < view.channels; ++d) row[d] = from[d] * mean;
    }
    for (int64_t d = view.channels; d < view.sorted_stride; ++d) row[d] = T(0);
  }
}

template <class M>
struct TokenScratch {
  typename M::Scalar* sums;           // [pixels + 1, Q*R, width]
  typename M::Operand* coefficients;  // [slots, Q] planes of [chunk, R]
  int64_t width;                      // channels of the slice, rounded up to whole vectors
  int64_t plane;  // elements of a plane; stores run over its end by less than a vector
};

template <class M>
int64_t plane_size(const ReadoutView<typename M::Scalar>& view) {
  return kTokenChunk * view.rows + M::kLanes;
}

template <class M>
int64_t token_scratch(const ReadoutView<typename M::Scalar>& view, int64_t channels) {
  return whole_vectors<M>(channels) * (view.pixels + 1) * view.blocks * view.rows +
         5 * view.blocks * plane_size<M>(view);
}

template <class M>
TokenScratch<M> carve_tokens(const ReadoutView<typename M::Scalar>& view, int64_t channels,
                             typename M::Scalar* at) {
  static_assert(sizeof(typename M::Operand) == sizeof(typename M::Scalar));
  const int64_t width = whole_vectors<M>(channels);
  typename M::Scalar* const after = at + (view.pixels + 1) * view.blocks * view.rows * width;
  return {at, reinterpret_cast<typename M::Operand*>(after), width, plane_size<M>(view)};
}

// coefficients[slot, block][i, r] = g corner layer, of `count` vertices that begin at `position` of
// the sorted order. Also calls for their weights, which the tiles read in steps too wide for the
// processor to foresee.
template <class M, int Rows>
void fill_token_chunk(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                      const typename M::Scalar* grad_output, const TokenScratch<M>& scratch,
                      const typename M::Scalar* weight, int64_t position, int64_t count) {
  using T = typename M::Scalar;
  using Loose = typename M::Loose;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t group = (position + i) / M::kLanes, lane = (position + i) % M::kLanes;
    const T grad = grad_output[view.vertex[position + i]];
    const T* const layer = view.layer_rows + (position + i) * view.blocks * Rows;
    const T* const corner = view.corner + group * 5 * M::kLanes + lane;
    const T* const row = weight + i * view.sorted_stride;
    for (int64_t d = 0; d < scratch.width; d += 64 / sizeof(T)) __builtin_prefetch(row + d, 0, 2);
    T* to = scratch.coefficients + i * Rows;
    for (int slot = 0; slot < cell.slots; ++slot) {
      const T factor = grad * corner[slot * M::kLanes];
      for (int64_t block = 0; block < view.blocks; ++block, to += scratch.plane) {
        // Whole vectors: what runs past the row is written again by the next vertex, or never read.
        BRAINFAST_UNROLL
        for (int r = 0; r < Rows; r += M::kLanes) {
          const Loose values = *reinterpret_cast<const Loose*>(layer + block * Rows + r);
          *reinterpret_cast<Loose*>(to + r) = values * factor;
        }
      }
    }
  }
}

// sums [Rows, width] += coefficients [count, Rows] x weight rows, for Columns vectors of channels.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void token_tile(const typename M::Operand* coefficients,
                                          const typename M::Operand* weight, int64_t weight_stride,
                                          int64_t count, typename M::Scalar* sums, int64_t width) {
  typename M::Vector sum[Rows][Columns];
  BRAINFAST_UNROLL
  for (int i = 0; i < Rows * Columns; ++i) {
    sum[i / Columns][i % Columns] = load<M>(sums + i / Columns * width + i % Columns * M::kLanes);
  }
  multiply<M, Rows, Columns>(sum, coefficients, weight, {Rows, 1, weight_stride, M::kLanes}, count);
  BRAINFAST_UNROLL
  for (int i = 0; i < Rows * Columns; ++i) {
    store<M>(sums + i / Columns * width + i % Columns * M::kLanes, sum[i / Columns][i % Columns]);
  }
}

template <class M, int Rows>
void add_token_chunk(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                     const TokenScratch<M>& scratch, const typename M::Operand* weight,
                     int64_t weight_stride, int64_t count) {
  // Channels outermost: their columns of the weights then stay near for all corners and layers.
  for (int64_t d = 0; d < scratch.width; d += 2 * M::kLanes) {
    for (int slot = 0; slot < cell.slots; ++slot) {
      for (int64_t block = 0; block < view.blocks; ++block) {
        const typename M::Operand* const x =
            scratch.coefficients + (slot * view.blocks + block) * scratch.plane;
        typename M::Scalar* const to =
            scratch.sums + (cell.pixel[slot] * view.blocks + block) * Rows * scratch.width + d;
        if (d + 2 * M::kLanes <= scratch.width) {
          token_tile<M, Rows, 2>(x, weight + d, weight_stride, count, to, scratch.width);
        } else {
          token_tile<M, Rows, 1>(x, weight + d, weight_stride, count, to, scratch.width);
        }
      }
    }
  }
}

template <class M, int Rows>
void add_token_cell(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                    const ReadoutTokenTask<typename M::Scalar>& task,
                    const TokenScratch<M>& scratch) {
  for (int64_t begin = 0; begin < cell.vertex_count; begin += kTokenChunk) {
    const int64_t count = smaller(kTokenChunk, cell.vertex_count - begin);
    const int64_t position = cell.group_begin * M::kLanes + begin;
    const auto* weight = task.sorted_weight + position * view.sorted_stride + task.channel_begin;
    fill_token_chunk<M, Rows>(view, cell, task.grad_output, scratch, weight, position, count);
    add_token_chunk<M, Rows>(view, cell, scratch, weight, view.sorted_stride, count);
  }
}

template <class M>
void clear_token_sums(const ReadoutView<typename M::Scalar>& view, const TokenScratch<M>& scratch) {
  const int64_t size = (view.pixels + 1) * view.blocks * view.rows * scratch.width;
  for (int64_t i = 0; i < size; ++i) scratch.sums[i] = typename M::Scalar(0);
}

// Sums times `factor` to where the task wants them.
template <class M, class Task>
void write_token_sums(const ReadoutView<typename M::Scalar>& view, const Task& task,
                      const TokenScratch<M>& scratch, typename M::Scalar factor) {
  using T = typename M::Scalar;
  const int64_t stride = view.blocks * view.rows * scratch.width;
  for (int64_t l = 0; l < view.layers; ++l) {
    for (int64_t d = task.channel_begin; d < task.channel_end; ++d) {
      const T* const from = scratch.sums + l * scratch.width + d - task.channel_begin;
      const int64_t row = l * view.channels + d;
      if (task.local) {
        T* const to = task.local + row * view.pixels;
        for (int64_t p = 0; p < view.pixels; ++p) to[p] = from[p * stride] * factor;
      }
      if (task.global) task.global[row] = from[view.pixels * stride] * factor;
    }
  }
}

template <class M>
void token_gradients(const ReadoutView<typename M::Scalar>& view,
                     const ReadoutTokenTask<typename M::Scalar>& task) {
  const auto scratch = carve_tokens<M>(view, task.channel_end - task.channel_begin, task.scratch);
  clear_token_sums<M>(view, scratch);
  with_count<M::kMaxRows>(view.rows, [&](auto rows) {
    for (int64_t cell = 0; cell < view.cell_count; ++cell) {
      add_token_cell<M, rows.value>(view, view.cells[cell], task, scratch);
    }
  });
  write_token_sums<M>(view, task, scratch, 1);
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
