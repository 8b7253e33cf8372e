// Gradients of the projection, as matrix products over vectors of channels or of entries of the
// latent.
#pragma once

#include "factor_projection_kernels.h"
#include "panel_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kBatchSteps = 128;  // images at a time, in the gradients of the factors

template <class M>
int64_t token_scratch(int64_t latent, int64_t rows) {
  return (rows + M::kMaxRows - 1) / M::kMaxRows * M::kMaxRows * latent;
}

template <class M, int Rows, int Columns>
__attribute__((noinline)) void token_tile(const typename M::Scalar* mixed,
                                          const typename M::Scalar* filters, int64_t latent,
                                          typename M::Scalar* tokens, int64_t stride,
                                          int64_t channels) {
  typename M::Vector sum[Rows][Columns] = {};
  multiply<M, Rows, Columns>(sum, mixed, filters, {Rows, 1, M::kLanes, latent * M::kLanes}, latent);
  BRAINFAST_UNROLL
  for (int i = 0; i < Rows * Columns; ++i) {
    const int r = i / Columns, c = i % Columns;
    store_lanes<M>(tokens + r * stride + c * M::kLanes, sum[r][c], channels - c * M::kLanes);
  }
}

// mixed[block][k][row] = grad_output[k] maps[k,row], then a product with the filters.
template <class M>
void token_gradients(const ProjectionTokenTask<typename M::Scalar>& task) {
  using T = typename M::Scalar;
  constexpr int64_t kRows = M::kMaxRows;
  for (int64_t row = task.row_begin; row < task.row_end; row += kRows) {
    const int64_t count = smaller(kRows, task.row_end - row);
    T* to = task.scratch + (row - task.row_begin) * task.latent;
    for (int64_t k = 0; k < task.latent; ++k, to += count) {
      const T* const map = task.maps + k * task.map_stride + row;
      for (int64_t r = 0; r < count; ++r) to[r] = task.grad_output[k] * map[r];
    }
  }
  // Channels outermost: their filters stay near for all rows.
  for (int64_t c = 0; c < task.channels; c += 2 * M::kLanes) {
    const T* const filters = task.filters + c * task.latent;
    const int64_t left = task.channels - c;
    for (int64_t row = task.row_begin; row < task.row_end; row += kRows) {
      const T* const mixed = task.scratch + (row - task.row_begin) * task.latent;
      T* const to = task.tokens + row * task.channels + c;
      with_count<M::kMaxRows>(smaller(kRows, task.row_end - row), [&](auto rows) {
        if (left > M::kLanes) {
          token_tile<M, rows.value, 2>(mixed, filters, task.latent, to, task.channels, left);
        } else {
          token_tile<M, rows.value, 1>(mixed, filters, task.latent, to, task.channels, left);
        }
      });
    }
  }
}

template <class M>
int64_t factor_scratch() {
  return kBatchSteps * M::kMaxRows;
}

// Where the tile of one token, Rows channels and Columns groups of k goes.
template <class M>
struct FactorTile {
  const typename M::Scalar* x;            // [images, Rows]
  const typename M::Scalar* grad_output;  // [images, lanes]
  int64_t grad_stride;                    // between groups, and so on
  int64_t images;
  const typename M::Scalar* filters;  // [Rows, lanes]
  typename M::Scalar* grad_filters;
  int64_t filter_stride;
  const typename M::Scalar* map;  // [lanes]
  typename M::Scalar* grad_map;
  int64_t map_stride;
};

// mixed[k,t,c] = sum_b grad_output[b,k] tokens[b,t,c] serves both factors, so that a batch costs
// one product: grad_filters[k,c] += map[k,t] mixed and grad_maps[k,t] += filters[k,c] mixed.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void factor_tile(const FactorTile<M>& tile) {
  typename M::Vector mixed[Rows][Columns] = {};
  multiply<M, Rows, Columns>(mixed, tile.x, tile.grad_output,
                             {Rows, 1, M::kLanes, tile.grad_stride}, tile.images);
  BRAINFAST_UNROLL
  for (int c = 0; c < Columns; ++c) {
    if (tile.grad_filters) {
      const typename M::Vector map = load<M>(tile.map + c * tile.map_stride);
      auto* const to = tile.grad_filters + c * tile.filter_stride;
      BRAINFAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        store<M>(to + r * M::kLanes, load<M>(to + r * M::kLanes) + map * mixed[r][c]);
      }
    }
    if (tile.grad_map) {
      const auto* const filters = tile.filters + c * tile.filter_stride;
      auto* const to = tile.grad_map + c * tile.map_stride;
      typename M::Vector chain[2] = {load<M>(to)};
      BRAINFAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        chain[r % 2] += load<M>(filters + r * M::kLanes) * mixed[r][c];
      }
      store<M>(to, chain[0] + chain[1]);
    }
  }
}

// One token's channels, some images: [images, Rows]. Also calls for the next token's.
template <class T, int Rows>
BRAINFAST_INLINE void gather_images(const T* from, int64_t image_stride, int64_t images,
                                    int64_t ahead, T* to) {
  for (int64_t b = 0; b < images; ++b, from += image_stride, to += Rows) {
    __builtin_prefetch(from + ahead);
    T row[Rows];  // all read before the first one is written: as vectors
    BRAINFAST_UNROLL
    for (int r = 0; r < Rows; ++r) row[r] = from[r];
    BRAINFAST_UNROLL
    for (int r = 0; r < Rows; ++r) to[r] = row[r];
  }
}

template <class M, int Rows>
void factor_rows(const ProjectionFactorTask<typename M::Scalar>& task, int64_t image,
                 int64_t images, int64_t channel) {
  using T = typename M::Scalar;
  const int64_t image_stride = task.tokens * task.channels;
  const int64_t filter_stride = task.channels * M::kLanes, map_stride = task.tokens * M::kLanes;
  const int64_t grad_stride = task.images * M::kLanes;
  for (int64_t t = 0; t < task.tokens; ++t) {
    const T* const token = task.source + image * image_stride + t * task.channels + channel;
    gather_images<T, Rows>(token, image_stride, images, t + 1 < task.tokens ? task.channels : 0,
                           task.scratch);
    for (int64_t group = task.group_begin; group < task.group_end; group += 2) {
      const int64_t filter = group * filter_stride + channel * M::kLanes;
      const int64_t map = group * map_stride + t * M::kLanes;
      T* const to_filters = task.grad_filters ? task.grad_filters + filter : nullptr;
      T* const to_map = task.grad_maps ? task.grad_maps + map : nullptr;
      const FactorTile<M> tile{task.scratch,
                               task.grad_output + group * grad_stride + image * M::kLanes,
                               grad_stride,
                               images,
                               task.filters + filter,
                               to_filters,
                               filter_stride,
                               task.maps + map,
                               to_map,
                               map_stride};
      if (task.group_end - group >= 2) {
        factor_tile<M, Rows, 2>(tile);
      } else {
        factor_tile<M, Rows, 1>(tile);
      }
    }
  }
}

template <class M>
void factor_gradients(const ProjectionFactorTask<typename M::Scalar>& task) {
  for (int64_t image = 0; image < task.images; image += kBatchSteps) {
    const int64_t images = smaller(kBatchSteps, task.images - image);
    for (int64_t channel = 0; channel < task.channels; channel += M::kMaxRows) {
      with_count<M::kMaxRows>(smaller(M::kMaxRows, task.channels - channel), [&](auto rows) {
        factor_rows<M, rows.value>(task, image, images, channel);
      });
    }
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
