// The projection's forward kernel, written once over vectors of `lanes` entries of the latent. Each
// instruction-set object compiles its own copy, in its own namespace (BRAINFAST_ISA_NAMESPACE).
#pragma once

#include "factor_projection_kernels.h"
#include "lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int64_t kSliceSteps = 128;  // of two panels: what stays in the first-level cache
constexpr int kTileColumns = 2;       // panels of a register tile

// One row's entries of a factor that is outside.
template <class M>
struct Outer {
  static BRAINFAST_INLINE typename M::Vector at(const typename M::Operand* panel, int64_t entry) {
    return load<M>(panel + entry * M::kLanes);
  }
};

template <class M>
struct ProjectionTile {
  const typename M::Operand* x;
  int64_t row_stride;
  const typename M::Operand* inner;
  int64_t inner_stride;
  const typename M::Operand* outer;
  int64_t outer_stride;
  int64_t entry;  // of the tile's first row in `outer`
  int64_t steps;
};

// total[c] += sum_r outer[c][r] (inner[c] . x[r]). A function of its own, so that nothing but the
// sums is alive in the loop that needs nearly every register.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void project_tile(const ProjectionTile<M>& tile,
                                            typename M::Vector* total) {
  typename M::Vector sum[Rows][Columns] = {};
  multiply<M, Rows, Columns>(sum, tile.x, tile.inner,
                             {1, tile.row_stride, M::kLanes, tile.inner_stride}, tile.steps);
  BRAINFAST_UNROLL
  for (int c = 0; c < Columns; ++c) {
    // From zero, so that a short sum and not each of its terms meets the large one; two chains, for
    // half the latency.
    typename M::Vector chain[2] = {};
    BRAINFAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      chain[r % 2] += sum[r][c] * Outer<M>::at(tile.outer + c * tile.outer_stride, tile.entry + r);
    }
    total[c] += chain[0] + chain[1];
  }
}

// Every row of one image's slice of steps.
template <class M, int Columns, class Piece>
void project_rows(const Piece& piece, ProjectionTile<M> tile, typename M::Scalar* sums) {
  typename M::Vector total[Columns] = {};
  for (int64_t row = 0; row < piece.rows; row += M::kMaxRows) {
    with_count<M::kMaxRows>(smaller(M::kMaxRows, piece.rows - row),
                            [&](auto rows) { project_tile<M, rows.value, Columns>(tile, total); });
    tile.x += M::kMaxRows * piece.row_stride;
    tile.entry += M::kMaxRows;
  }
  for (int c = 0; c < Columns; ++c) {
    store<M>(sums + c * M::kLanes, load<M>(sums + c * M::kLanes) + total[c]);
  }
}

// Sums of a slice start at zero and are added up afterwards, which keeps rounding errors small.
template <class M, class Task>
void project(const Task& task) {
  for (int64_t i = 0; i < task.piece_count; ++i) {
    const auto& piece = task.pieces[i];
    for (int64_t begin = 0; begin < piece.steps; begin += kSliceSteps) {
      for (int64_t image = task.image_begin; image < task.image_end; ++image) {
        for (int64_t group = task.group_begin; group < task.group_end; group += kTileColumns) {
          const ProjectionTile<M> tile{piece.tokens + image * piece.image_stride + begin,
                                       piece.row_stride,
                                       piece.inner + group * piece.inner_stride + begin * M::kLanes,
                                       piece.inner_stride,
                                       piece.outer + group * piece.outer_stride,
                                       piece.outer_stride,
                                       piece.outer_begin,
                                       smaller(kSliceSteps, piece.steps - begin)};
          auto* const sums = task.sums + image * task.sum_stride + group * M::kLanes;
          if (task.group_end - group >= kTileColumns) {
            project_rows<M, kTileColumns>(piece, tile, sums);
          } else {
            project_rows<M, 1>(piece, tile, sums);
          }
        }
      }
    }
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
