// The readout's kernels, written once over vectors of `lanes` vertices. Each instruction-set object
// compiles its own copy, in its own namespace (BRAINFAST_ISA_NAMESPACE), with its own flags.
#pragma once

#include <cstdint>

#include "factor_readout_kernels.h"
#include "lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

template <class M, int Rows>
void pack_tokens_rows(const ReadoutView<typename M::Scalar>& view, const typename M::Scalar* local,
                      const typename M::Scalar* global, int64_t channel_begin, int64_t channel_end,
                      typename M::Scalar* packed) {
  using T = typename M::Scalar;
  constexpr int64_t kTile = 16;
  const int64_t layer_stride = view.channels * view.pixels;
  for (int64_t block = 0; block < view.blocks; ++block) {
    const int64_t layers = smaller(Rows, view.layers - block * Rows);
    for (int64_t d = channel_begin; d < channel_end; ++d) {
      T* const to = packed + (block * view.channels + d) * Rows;
      const T* const from = local + block * Rows * layer_stride + d * view.pixels;
      for (int64_t begin = 0; begin < view.pixels; begin += kTile) {
        const int64_t count = smaller(kTile, view.pixels - begin);
        T tile[Rows][kTile];
        for (int64_t r = 0; r < Rows; ++r) {
          const T* const row = from + r * layer_stride + begin;
          if (r >= layers) {
            for (int64_t p = 0; p < kTile; ++p) tile[r][p] = T(0);
          } else if (count == kTile) {
            for (int64_t p = 0; p < kTile; ++p) tile[r][p] = row[p];
          } else {
            for (int64_t p = 0; p < count; ++p) tile[r][p] = row[p];
          }
        }
        for (int64_t p = 0; p < count; ++p) {
          T* const pixel = to + (begin + p) * view.pixel_stride;
          BRAINFAST_UNROLL
          for (int r = 0; r < Rows; ++r) pixel[r] = tile[r][p];
        }
      }
      T* const last = to + view.pixels * view.pixel_stride;
      for (int64_t r = 0; r < Rows; ++r) {
        last[r] = r < layers ? global[(block * Rows + r) * view.channels + d] : T(0);
      }
    }
  }
}

template <class M>
void pack_tokens(const ReadoutView<typename M::Scalar>& view, const typename M::Scalar* local,
                 const typename M::Scalar* global, int64_t channel_begin, int64_t channel_end,
                 typename M::Scalar* packed) {
  with_count<M::kMaxRows>(view.rows, [&](auto rows) {
    pack_tokens_rows<M, rows.value>(view, local, global, channel_begin, channel_end, packed);
  });
}

// A lane of padding repeats the group's first vertex: nobody reads its answer.
template <class M>
void pack_weight(const ReadoutView<typename M::Scalar>& view, int64_t group,
                 const typename M::Scalar* weight, typename M::Scalar* packed) {
  using T = typename M::Scalar;
  using Loose = typename Quad<T>::Loose;
  const T mean = T(1) / static_cast<T>(view.channels);
  const std::int32_t* const vertex = view.vertex + group * M::kLanes;
  const int64_t whole = view.channels / 4 * 4;
  for (int lane = 0; lane < M::kLanes; lane += 4) {
    const T* from[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t v = vertex[lane + i] < 0 ? vertex[0] : vertex[lane + i];
      from[i] = weight + v * view.channels;
    }
    T* const to = packed + lane;
    for (int64_t d = 0; d < whole; d += 4) {
      Loose rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = *reinterpret_cast<const Loose*>(from[i] + d) * mean;
      transpose(rows);
      for (int i = 0; i < 4; ++i) *reinterpret_cast<Loose*>(to + (d + i) * M::kLanes) = rows[i];
    }
    for (int64_t d = whole; d < view.channels; ++d) {
      for (int i = 0; i < 4; ++i) to[d * M::kLanes + i] = from[i][d] * mean;
    }
  }
}

// Weights of `columns` groups as [columns, D, lanes]: packed before, or now into scratch.
template <class M>
const typename M::Scalar* group_weights(const ReadoutView<typename M::Scalar>& view, int64_t group,
                                        int64_t columns, typename M::Scalar* scratch) {
  const int64_t stride = view.channels * M::kLanes;
  if (view.packed_weight) return view.packed_weight + group * stride;
  for (int64_t c = 0; c < columns; ++c) {
    pack_weight<M>(view, group + c, view.weight, scratch + c * stride);
  }
  return scratch;
}

// Vertices of a group that are not padding; they come first.
template <class M>
BRAINFAST_INLINE int64_t filled_lanes(const ReadoutCell& cell, int64_t group) {
  return smaller(M::kLanes, cell.vertex_count - (group - cell.group_begin) * M::kLanes);
}

// mixed[c] += sum_l layer[c][l] (weight[c] . x[l]) for a block of layers. A function of its own, so
// that nothing but the sums is alive in the loop that needs nearly every register.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void mix_layers(const typename M::Operand* x,
                                          const typename M::Operand* weight, int64_t steps,
                                          const typename M::Scalar* layer, int64_t layer_stride,
                                          typename M::Vector* mixed) {
  typename M::Vector sum[Rows][Columns] = {};
  multiply<M, Rows, Columns>(sum, x, weight, {Rows, 1, M::kLanes, steps * M::kLanes}, steps);
  BRAINFAST_UNROLL
  for (int c = 0; c < Columns; ++c) {
    typename M::Vector total[2] = {mixed[c]};  // two chains: half the latency
    BRAINFAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      total[r % 2] += sum[r][c] * load<M>(layer + c * layer_stride + r * M::kLanes);
    }
    mixed[c] = total[0] + total[1];
  }
}

template <class M, int Rows, int Columns>
void forward_groups(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                    int64_t group, const typename M::Scalar* weight, int64_t image_begin,
                    int64_t image_end, const typename M::Scalar* tokens,
                    typename M::Scalar* output) {
  using T = typename M::Scalar;
  using Vector = typename M::Vector;
  const int64_t layer_stride = view.blocks * Rows * M::kLanes;
  const T* const layer = view.layer + group * layer_stride;
  const T* const corner = view.corner + group * 5 * M::kLanes;
  for (int64_t image = image_begin; image < image_end; ++image) {
    Vector answer[Columns] = {};
    for (int slot = 0; slot < cell.slots; ++slot) {
      const T* x = tokens + image * view.image_stride + cell.pixel[slot] * view.pixel_stride;
      Vector mixed[Columns] = {};
      for (int64_t block = 0; block < view.blocks; ++block, x += view.channels * Rows) {
        mix_layers<M, Rows, Columns>(x, weight, view.channels, layer + block * Rows * M::kLanes,
                                     layer_stride, mixed);
      }
      for (int c = 0; c < Columns; ++c) {
        answer[c] += mixed[c] * load<M>(corner + (c * 5 + slot) * M::kLanes);
      }
    }
    T* const row = output + image * view.vertices;
    for (int c = 0; c < Columns; ++c) {
      // Last, so that a large bias costs one rounding only.
      answer[c] += load<M>(view.bias + (group + c) * M::kLanes);
      const std::int32_t* const vertex = view.vertex + (group + c) * M::kLanes;
      const int64_t filled = filled_lanes<M>(cell, group + c);
      for (int64_t lane = 0; lane < filled; ++lane) row[vertex[lane]] = answer[c][lane];
    }
  }
}

template <class M>
int64_t forward_scratch(const ReadoutView<typename M::Scalar>& view) {
  return view.packed_weight ? 0
                            : M::columns(static_cast<int>(view.rows)) * view.channels * M::kLanes;
}

template <class M>
void forward(const ReadoutView<typename M::Scalar>& view, const ReadoutUnit& unit,
             int64_t image_begin, int64_t image_end, const typename M::Scalar* tokens,
             typename M::Scalar* output, typename M::Scalar* scratch) {
  const ReadoutCell& cell = view.cells[unit.cell];
  with_count<M::kMaxRows>(view.rows, [&](auto rows) {
    constexpr int kRows = rows.value;
    constexpr int kColumns = M::columns(kRows);
    for (int64_t group = unit.group_begin; group < unit.group_end;) {
      const int64_t left = unit.group_end - group;
      const int64_t columns = left >= kColumns ? kColumns : left >= 2 ? 2 : 1;
      const auto* weight = group_weights<M>(view, group, columns, scratch);
      if (columns == 4) {
        if constexpr (kColumns == 4) {
          forward_groups<M, kRows, 4>(view, cell, group, weight, image_begin, image_end, tokens,
                                      output);
        }
      } else if (columns == 2) {
        forward_groups<M, kRows, 2>(view, cell, group, weight, image_begin, image_end, tokens,
                                    output);
      } else {
        forward_groups<M, kRows, 1>(view, cell, group, weight, image_begin, image_end, tokens,
                                    output);
      }
      group += columns;
    }
  });
}

template <class M>
int64_t fma_loop(int64_t iterations, typename M::Scalar* sink) {
  using Vector = typename M::Vector;
  constexpr int kChains = 2 * M::kMaxRows;
  const Vector factor = load<M>(sink), term = load<M>(sink + M::kLanes);
  Vector sum[kChains];  // of different numbers, or a compiler would keep only one
  for (int chain = 0; chain < kChains; ++chain) sum[chain] = factor * typename M::Scalar(chain);
  for (int64_t i = 0; i < iterations; ++i) {
    BRAINFAST_UNROLL
    for (int chain = 0; chain < kChains; ++chain) sum[chain] = sum[chain] * factor + term;
  }
  Vector total = {};
  for (int chain = 0; chain < kChains; ++chain) total += sum[chain];
  store<M>(sink, total);
  return iterations * kChains * M::kLanes * 2;
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
