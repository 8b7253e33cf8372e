// Gradients of what belongs to a vertex, as two matrix products over vectors of vertices: w.X again
// for the selectors, coefficients x tokens for the weights.
#pragma once

#include "factor_readout_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int kVertexColumns = 2;

template <class T>
struct VertexScratch {
  T* weight;        // [columns, D, lanes]
  T* grad_output;   // [B, columns, lanes]
  T* sums;          // [slots, Q*R, columns, lanes]
  T* coefficients;  // [chunk, slots, Q*R, columns, lanes]
  T* grad_weight;   // [D, columns, lanes]
  int64_t chunk;    // images whose coefficients are held at a time
};

template <class M>
int64_t sums_size(const ReadoutView<typename M::Scalar>& view) {
  return 5 * view.blocks * view.rows * kVertexColumns * M::kLanes;
}

template <class M>
int64_t image_chunk(const ReadoutView<typename M::Scalar>& view, int64_t images) {
  constexpr int64_t kCoefficients = 1 << 15;  // stays in the second-level cache
  const int64_t chunk = kCoefficients / sums_size<M>(view);
  return smaller(images, chunk > 1 ? chunk : 1);
}

template <class M>
int64_t vertex_scratch(const ReadoutView<typename M::Scalar>& view, int64_t images) {
  return (2 * view.channels + images) * kVertexColumns * M::kLanes +
         (1 + image_chunk<M>(view, images)) * sums_size<M>(view);
}

template <class M>
VertexScratch<typename M::Scalar> carve(const ReadoutView<typename M::Scalar>& view, int64_t images,
                                        typename M::Scalar* at) {
  constexpr int64_t kWide = kVertexColumns * M::kLanes;
  VertexScratch<typename M::Scalar> carved;
  carved.chunk = image_chunk<M>(view, images);
  carved.weight = at;
  carved.grad_weight = carved.weight + view.channels * kWide;
  carved.grad_output = carved.grad_weight + view.channels * kWide;
  carved.sums = carved.grad_output + images * kWide;
  carved.coefficients = carved.sums + sums_size<M>(view);
  return carved;
}

// Selector gradients of one group from sums [slot, Q*R, columns, lanes] = sum_b g_b (w . X_b).
template <class M>
void finish_selectors(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                      int64_t group, const typename M::Scalar* sums, int64_t columns,
                      const ReadoutVertexTask<typename M::Scalar>& task) {
  using T = typename M::Scalar;
  using Vector = typename M::Vector;
  const int64_t padded = view.blocks * view.rows;
  const int64_t filled = filled_lanes<M>(cell, group);
  const std::int32_t* const vertex = view.vertex + group * M::kLanes;
  const T* const corner = view.corner + group * 5 * M::kLanes;
  Vector grad_corner[5] = {};
  for (int64_t l = 0; l < view.layers; ++l) {
    const Vector layer = load<M>(view.layer + (group * padded + l) * M::kLanes);
    Vector grad_layer = {};
    for (int slot = 0; slot < cell.slots; ++slot) {
      const Vector sum = load<M>(sums + (slot * padded + l) * columns * M::kLanes);
      grad_layer += sum * load<M>(corner + slot * M::kLanes);
      grad_corner[cell.corner[slot]] += sum * layer;
    }
    if (!task.layer) continue;
    for (int64_t i = 0; i < filled; ++i) task.layer[vertex[i] * view.layers + l] = grad_layer[i];
  }
  const Vector x = load<M>(view.fraction + group * 2 * M::kLanes);
  const Vector y = load<M>(view.fraction + (group * 2 + 1) * M::kLanes);
  const Vector top = grad_corner[0] + x * (grad_corner[1] - grad_corner[0]);
  const Vector bottom = grad_corner[2] + x * (grad_corner[3] - grad_corner[2]);
  if (task.scale) {
    const Vector grad = grad_corner[4] - (top + y * (bottom - top));
    for (int64_t i = 0; i < filled; ++i) task.scale[vertex[i]] = grad[i];
  }
  if (task.space) {
    const Vector across =
        (T(1) - y) * (grad_corner[1] - grad_corner[0]) + y * (grad_corner[3] - grad_corner[2]);
    const Vector local = T(1) - load<M>(view.scale + group * M::kLanes);
    const T* const slope = view.slope + group * 2 * M::kLanes;
    const Vector grad_x = local * across * load<M>(slope);
    const Vector grad_y = local * (bottom - top) * load<M>(slope + M::kLanes);
    for (int64_t i = 0; i < filled; ++i) {
      task.space[vertex[i] * 2] = grad_x[i];
      task.space[vertex[i] * 2 + 1] = grad_y[i];
    }
  }
}

template <class M, int Rows, int Columns>
__attribute__((noinline)) void selector_sums(const ReadoutView<typename M::Scalar>& view,
                                             const ReadoutCell& cell,
                                             const ReadoutVertexTask<typename M::Scalar>& task,
                                             const VertexScratch<typename M::Scalar>& scratch,
                                             const typename M::Scalar* weight) {
  using T = typename M::Scalar;
  using Vector = typename M::Vector;
  const Strides strides{Rows, 1, M::kLanes, view.channels * M::kLanes};
  const int64_t count = cell.slots * view.blocks * Rows * Columns;
  for (int64_t i = 0; i < count; ++i) store<M>(scratch.sums + i * M::kLanes, Vector{});
  for (int64_t image = 0; image < task.images; ++image) {
    Vector grad[Columns];
    for (int c = 0; c < Columns; ++c) {
      grad[c] = load<M>(scratch.grad_output + (image * Columns + c) * M::kLanes);
    }
    T* to = scratch.sums;
    for (int slot = 0; slot < cell.slots; ++slot) {
      const T* x = task.tokens + image * view.image_stride + cell.pixel[slot] * view.pixel_stride;
      for (int64_t block = 0; block < view.blocks; ++block, x += view.channels * Rows) {
        Vector sum[Rows][Columns] = {};
        multiply<M, Rows, Columns>(sum, x, weight, strides, view.channels);
        BRAINFAST_UNROLL
        for (int r = 0; r < Rows; ++r) {
          BRAINFAST_UNROLL
          for (int c = 0; c < Columns; ++c, to += M::kLanes) {
            store<M>(to, load<M>(to) + grad[c] * sum[r][c]);
          }
        }
      }
    }
  }
}

// coefficients[image, slot, layer, column] = g corner layer, for `images` images.
template <class M>
void fill_coefficients(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                       int64_t group, int64_t columns, const typename M::Scalar* grad_output,
                       int64_t images, typename M::Scalar* to) {
  const int64_t padded = view.blocks * view.rows;
  for (int64_t image = 0; image < images; ++image) {
    for (int slot = 0; slot < cell.slots; ++slot) {
      typename M::Vector factor[kVertexColumns];
      for (int64_t c = 0; c < columns; ++c) {
        factor[c] = load<M>(grad_output + (image * columns + c) * M::kLanes) *
                    load<M>(view.corner + ((group + c) * 5 + slot) * M::kLanes);
      }
      for (int64_t l = 0; l < padded; ++l) {
        for (int64_t c = 0; c < columns; ++c, to += M::kLanes) {
          store<M>(to, factor[c] * load<M>(view.layer + ((group + c) * padded + l) * M::kLanes));
        }
      }
    }
  }
}

// grad_weight[channel.., column] += tokens x coefficients, for Rows channels.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void weight_tile(const ReadoutView<typename M::Scalar>& view,
                                           const ReadoutCell& cell, int64_t channel,
                                           const typename M::Scalar* tokens, int64_t images,
                                           const typename M::Scalar* coefficients,
                                           typename M::Scalar* grad_weight) {
  using T = typename M::Scalar;
  const Strides strides{1, view.rows, Columns * M::kLanes, M::kLanes};
  typename M::Vector sum[Rows][Columns];
  T* const to = grad_weight + channel * Columns * M::kLanes;
  BRAINFAST_UNROLL
  for (int i = 0; i < Rows * Columns; ++i)
    sum[i / Columns][i % Columns] = load<M>(to + i * M::kLanes);
  for (int64_t image = 0; image < images; ++image) {
    for (int slot = 0; slot < cell.slots; ++slot) {
      const T* x = tokens + image * view.image_stride + cell.pixel[slot] * view.pixel_stride +
                   channel * view.rows;
      for (int64_t block = 0; block < view.blocks; ++block, x += view.channels * view.rows) {
        multiply<M, Rows, Columns>(sum, x, coefficients, strides, view.rows);
        coefficients += view.rows * Columns * M::kLanes;
      }
    }
  }
  BRAINFAST_UNROLL
  for (int i = 0; i < Rows * Columns; ++i)
    store<M>(to + i * M::kLanes, sum[i / Columns][i % Columns]);
}

// from [D, columns, lanes] over D -> rows of grad_weight [V,D].
template <class M, int Columns>
void scatter_weight(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                    int64_t group, const typename M::Scalar* from,
                    typename M::Scalar* grad_weight) {
  using T = typename M::Scalar;
  using Loose = typename Quad<T>::Loose;
  constexpr int64_t kStep = Columns * M::kLanes;
  const T mean = T(1) / static_cast<T>(view.channels);
  const std::int32_t* const vertex = view.vertex + group * M::kLanes;
  const int64_t filled = filled_lanes<M>(cell, group);
  const int64_t whole = view.channels / 4 * 4;
  for (int64_t lane = 0; lane < filled; lane += 4) {
    const int64_t count = smaller(4, filled - lane);
    for (int64_t d = 0; d < whole; d += 4) {
      Loose rows[4];
      for (int i = 0; i < 4; ++i) {
        rows[i] = *reinterpret_cast<const Loose*>(from + (d + i) * kStep + lane) * mean;
      }
      transpose(rows);
      BRAINFAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (i >= count) break;
        *reinterpret_cast<Loose*>(grad_weight + vertex[lane + i] * view.channels + d) = rows[i];
      }
    }
    for (int64_t d = whole; d < view.channels; ++d) {
      for (int64_t i = 0; i < count; ++i) {
        grad_weight[vertex[lane + i] * view.channels + d] = from[d * kStep + lane + i] * mean;
      }
    }
  }
}

template <class M, int Columns>
void weight_gradients(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                      int64_t group, const ReadoutVertexTask<typename M::Scalar>& task,
                      const VertexScratch<typename M::Scalar>& scratch) {
  using T = typename M::Scalar;
  for (int64_t i = 0; i < view.channels * Columns; ++i) {
    store<M>(scratch.grad_weight + i * M::kLanes, typename M::Vector{});
  }
  for (int64_t begin = 0; begin < task.images; begin += scratch.chunk) {
    const int64_t images = smaller(scratch.chunk, task.images - begin);
    fill_coefficients<M>(view, cell, group, Columns,
                         scratch.grad_output + begin * Columns * M::kLanes, images,
                         scratch.coefficients);
    const T* const tokens = task.tokens + begin * view.image_stride;
    for (int64_t channel = 0; channel < view.channels; channel += M::kMaxRows) {
      with_count<M::kMaxRows>(smaller(M::kMaxRows, view.channels - channel), [&](auto rows) {
        weight_tile<M, rows.value, Columns>(view, cell, channel, tokens, images,
                                            scratch.coefficients, scratch.grad_weight);
      });
    }
  }
  for (int c = 0; c < Columns; ++c) {
    scatter_weight<M, Columns>(view, cell, group + c, scratch.grad_weight + c * M::kLanes,
                               task.weight);
  }
}

template <class M, int Columns>
void vertex_groups(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                   int64_t group, const ReadoutVertexTask<typename M::Scalar>& task) {
  using T = typename M::Scalar;
  const VertexScratch<T> scratch = carve<M>(view, task.images, task.scratch);
  for (int64_t image = 0; image < task.images; ++image) {
    for (int c = 0; c < Columns; ++c) {
      const std::int32_t* const vertex = view.vertex + (group + c) * M::kLanes;
      const int64_t filled = filled_lanes<M>(cell, group + c);
      T* const to = scratch.grad_output + (image * Columns + c) * M::kLanes;
      for (int64_t i = 0; i < M::kLanes; ++i) {
        to[i] = i < filled ? task.grad_output[image * view.vertices + vertex[i]] : T(0);
      }
    }
  }
  if (task.space || task.layer || task.scale) {
    const T* const weight = group_weights<M>(view, group, Columns, scratch.weight);
    with_count<M::kMaxRows>(view.rows, [&](auto rows) {
      selector_sums<M, rows.value, Columns>(view, cell, task, scratch, weight);
    });
    for (int c = 0; c < Columns; ++c) {
      finish_selectors<M>(view, cell, group + c, scratch.sums + c * M::kLanes, Columns, task);
    }
  }
  if (task.weight) weight_gradients<M, Columns>(view, cell, group, task, scratch);
}

template <class M>
void vertex_gradients(const ReadoutView<typename M::Scalar>& view, const ReadoutUnit& unit,
                      const ReadoutVertexTask<typename M::Scalar>& task) {
  const ReadoutCell& cell = view.cells[unit.cell];
  int64_t group = unit.group_begin;
  for (; group + 2 <= unit.group_end; group += 2) vertex_groups<M, 2>(view, cell, group, task);
  if (group < unit.group_end) vertex_groups<M, 1>(view, cell, group, task);
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
