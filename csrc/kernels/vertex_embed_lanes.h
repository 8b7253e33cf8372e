// The embedding's kernels, written once over vectors of `lanes` vertices. Each instruction-set
// object compiles its own copy, in its own namespace (BRAINFAST_ISA_NAMESPACE).
#pragma once

#include "panel_lanes.h"
#include "vertex_embed_kernels.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kEmbedSteps = 256;  // summed from zero, then added: keeps rounding errors small

template <class M, int Rows, int Columns, class Task>
__attribute__((noinline)) void embed_tile(const Task& task, const typename M::Operand* x,
                                          const typename M::Operand* w, int64_t image,
                                          int64_t vertex) {
  using Vector = typename M::Vector;
  const int64_t group_stride = task.steps * M::kLanes;
  Vector total[Rows][Columns] = {};
  for (int64_t step = 0; step < task.steps; step += kEmbedSteps) {
    Vector sum[Rows][Columns] = {};
    multiply<M, Rows, Columns>(sum, x + step * Rows, w + step * M::kLanes,
                               {Rows, 1, M::kLanes, group_stride},
                               smaller(kEmbedSteps, task.steps - step));
    BRAINFAST_UNROLL
    for (int i = 0; i < Rows * Columns; ++i) {
      total[i / Columns][i % Columns] += sum[i / Columns][i % Columns];
    }
  }
  for (int c = 0; c < Columns; ++c) {
    const int64_t begin = vertex + c * M::kLanes, count = task.vertices - begin;
    Vector bias = {};
    if (task.bias) {
      for (int64_t i = 0; i < smaller(M::kLanes, count); ++i) bias[i] = task.bias[begin + i];
    }
    for (int r = 0; r < Rows; ++r) {
      auto* const to = task.response + (image + r) * task.response_stride + begin;
      store_lanes<M>(to, total[r][c] + bias, count);
    }
  }
}

template <class M, int Columns, class Task>
void embed_groups(const Task& task, int64_t group) {
  const auto* const w = task.weight + group * task.steps * M::kLanes;
  for (int64_t image = 0; image < task.images; image += M::kMaxRows) {
    const auto* const x = task.latent + image * task.steps;
    with_count<M::kMaxRows>(smaller(M::kMaxRows, task.images - image), [&](auto rows) {
      embed_tile<M, rows.value, Columns>(task, x, w, image, group * M::kLanes);
    });
  }
}

// Four groups at a time where one image leaves the registers free; its weights then come in as
// four streams.
template <class M, class Task>
void embed(const Task& task) {
  int64_t group = 0;
  if (task.images == 1) {
    for (; group + 4 <= task.groups; group += 4) {
      embed_tile<M, 1, 4>(task, task.latent, task.weight + group * task.steps * M::kLanes, 0,
                          group * M::kLanes);
    }
  }
  for (; group + 2 <= task.groups; group += 2) embed_groups<M, 2>(task, group);
  if (group < task.groups) embed_groups<M, 1>(task, group);
}

template <class M>
void unpack_steps(const typename M::Scalar* from, int64_t lanes, int64_t columns,
                  typename M::Scalar* to, int64_t to_stride) {
  transpose_into(from, lanes, columns, lanes, to, to_stride);
}

template <class M>
void accumulate(const typename M::Scalar* x, const typename M::Scalar* w, int64_t rows,
                int64_t steps, typename M::Scalar* sums) {
  with_count<M::kMaxRows>(rows, [&](auto count) {
    constexpr int kRows = count.value;
    typename M::Vector sum[kRows][2];
    for (int i = 0; i < 2 * kRows; ++i) sum[i / 2][i % 2] = load<M>(sums + i * M::kLanes);
    multiply<M, kRows, 2>(sum, x, w, {kRows, 1, 2 * M::kLanes, M::kLanes}, steps);
    for (int i = 0; i < 2 * kRows; ++i) store<M>(sums + i * M::kLanes, sum[i / 2][i % 2]);
  });
}

template <class M>
constexpr EmbedKernels<typename M::Scalar> make_embed_kernels() {
  using T = typename M::Scalar;
  return {M::kLanes,    M::kMaxRows, pack_panel<M>, unpack_steps<M>, embed<M, EmbedTask<T, T>>,
          accumulate<M>};
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
