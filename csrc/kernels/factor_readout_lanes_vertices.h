// Gradients of what belongs to a vertex. All images meet the same weights and coefficients, so they
// are summed first: z_k = sum_b g_b x_bk gives the selectors (w . z_k) and the weights
// (sum_k coef_k z_k) alike, with B + 2 products in place of 2 B.
#pragma once

#include "factor_readout_lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

template <class T>
struct VertexScratch {
  T* weight;       // [D, lanes]
  T* grad_weight;  // [D, lanes] times D
  T* grad_output;  // [B, lanes]
  T* sums;         // [slots, Q*R, lanes]
};

template <class M>
int64_t vertex_scratch(const ReadoutView<typename M::Scalar>& view, int64_t images) {
  return (2 * view.channels + images + 5 * view.blocks * view.rows) * M::kLanes;
}

template <class M>
VertexScratch<typename M::Scalar> carve(const ReadoutView<typename M::Scalar>& view, int64_t images,
                                        typename M::Scalar* at) {
  VertexScratch<typename M::Scalar> carved;
  carved.weight = at;
  carved.grad_weight = carved.weight + view.channels * M::kLanes;
  carved.grad_output = carved.grad_weight + view.channels * M::kLanes;
  carved.sums = carved.grad_output + images * M::kLanes;
  return carved;
}

// Selector gradients of one group from sums [slots, Q*R, lanes] = w . z.
template <class M, class Task>
void finish_selectors(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                      int64_t group, const typename M::Scalar* sums, const Task& task) {
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
      const Vector sum = load<M>(sums + (slot * padded + l) * M::kLanes);
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

// One slot's block of layers: sums[r] = w . z_r, and grad_weight [D, lanes] += sum_r coefficient_r
// z_r. Images come `image_stride` apart, as many at a time as an operand holds.
template <class M, int Rows>
__attribute__((noinline)) void vertex_tile(const typename M::Operand* x, int64_t image_stride,
                                           int64_t images, const typename M::Operand* grad_output,
                                           const typename M::Scalar* weight, int64_t channels,
                                           const typename M::Vector* coefficients,
                                           typename M::Scalar* sums,
                                           typename M::Scalar* grad_weight) {
  using Vector = typename M::Vector;
  Vector sum[Rows] = {};
  for (int64_t d = 0; d < channels; ++d, x += Rows) {
    Vector z[Rows] = {};
    const typename M::Operand* from = x;
    for (int64_t image = 0; image < images; ++image, from += image_stride) {
      const auto grad = M::load_operands(grad_output + image * M::kLanes);
      BRAINFAST_UNROLL
      for (int r = 0; r < Rows; ++r) M::add_product(z[r], grad, from[r]);
    }
    const Vector w = load<M>(weight + d * M::kLanes);
    Vector total[2] = {load<M>(grad_weight + d * M::kLanes)};  // two chains: half the latency
    BRAINFAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      sum[r] += w * z[r];
      total[r % 2] += coefficients[r] * z[r];
    }
    store<M>(grad_weight + d * M::kLanes, total[0] + total[1]);
  }
  BRAINFAST_UNROLL
  for (int r = 0; r < Rows; ++r) store<M>(sums + r * M::kLanes, sum[r]);
}

// All that a group's vertices read: sums [slots, Q*R, lanes], and grad_weight [D, lanes].
template <class M, int Rows>
void vertex_sums(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                 int64_t group, const typename M::Operand* tokens, int64_t pixel_stride,
                 int64_t block_stride, int64_t image_stride, int64_t images,
                 const typename M::Operand* grad_output, const typename M::Scalar* weight,
                 typename M::Scalar* sums, typename M::Scalar* grad_weight) {
  using Vector = typename M::Vector;
  for (int64_t d = 0; d < view.channels; ++d) store<M>(grad_weight + d * M::kLanes, Vector{});
  const auto* const layers = view.layer + group * view.blocks * Rows * M::kLanes;
  for (int slot = 0; slot < cell.slots; ++slot) {
    const Vector corner = load<M>(view.corner + (group * 5 + slot) * M::kLanes);
    for (int64_t block = 0; block < view.blocks; ++block, sums += Rows * M::kLanes) {
      Vector coefficients[Rows];
      BRAINFAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        coefficients[r] = corner * load<M>(layers + (block * Rows + r) * M::kLanes);
      }
      vertex_tile<M, Rows>(tokens + cell.pixel[slot] * pixel_stride + block * block_stride,
                           image_stride, images, grad_output, weight, view.channels, coefficients,
                           sums, grad_weight);
    }
  }
}

// One image's grad_output [V] -> the group's lanes, zeros where padded.
template <class M>
void gather_grad(const ReadoutView<typename M::Scalar>& view, int64_t group,
                 const typename M::Scalar* grad_output, typename M::Scalar* to) {
  const std::int32_t* const vertex = view.vertex + group * M::kLanes;
  for (int64_t i = 0; i < M::kLanes; ++i) {
    to[i] = vertex[i] >= 0 ? grad_output[vertex[i]] : typename M::Scalar(0);
  }
}

// from [D, lanes] over D -> rows of grad_weight [V,D].
template <class M>
void scatter_weight(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                    int64_t group, const typename M::Scalar* from,
                    typename M::Scalar* grad_weight) {
  using T = typename M::Scalar;
  using Loose = typename Quad<T>::Loose;
  const T mean = T(1) / static_cast<T>(view.channels);
  const std::int32_t* const vertex = view.vertex + group * M::kLanes;
  const int64_t filled = filled_lanes<M>(cell, group);
  const int64_t whole = view.channels / 4 * 4;
  for (int64_t lane = 0; lane < filled; lane += 4) {
    const int64_t count = smaller(4, filled - lane);
    for (int64_t d = 0; d < whole; d += 4) {
      Loose rows[4];
      for (int i = 0; i < 4; ++i) {
        rows[i] = *reinterpret_cast<const Loose*>(from + (d + i) * M::kLanes + lane) * mean;
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
        grad_weight[vertex[lane + i] * view.channels + d] = from[d * M::kLanes + lane + i] * mean;
      }
    }
  }
}

template <class M, int Rows>
void vertex_group(const ReadoutView<typename M::Scalar>& view, const ReadoutCell& cell,
                  int64_t group, const ReadoutVertexTask<typename M::Scalar>& task) {
  const auto scratch = carve<M>(view, task.images, task.scratch);
  for (int64_t image = 0; image < task.images; ++image) {
    gather_grad<M>(view, group, task.grad_output + image * view.vertices,
                   scratch.grad_output + image * M::kLanes);
  }
  vertex_sums<M, Rows>(view, cell, group, task.tokens, view.pixel_stride, view.channels * Rows,
                       view.image_stride, task.images, scratch.grad_output,
                       group_weights<M>(view, group, 1, scratch.weight), scratch.sums,
                       scratch.grad_weight);
  if (task.space || task.layer || task.scale) {
    finish_selectors<M>(view, cell, group, scratch.sums, task);
  }
  if (task.weight) scatter_weight<M>(view, cell, group, scratch.grad_weight, task.weight);
}

template <class M>
void vertex_gradients(const ReadoutView<typename M::Scalar>& view, const ReadoutUnit& unit,
                      const ReadoutVertexTask<typename M::Scalar>& task) {
  with_count<M::kMaxRows>(view.rows, [&](auto rows) {
    for (int64_t group = unit.group_begin; group < unit.group_end; ++group) {
      vertex_group<M, rows.value>(view, view.cells[unit.cell], group, task);
    }
  });
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
