// How the projection's work is cut into pieces and tasks, for the operator and the plan alike.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../runtime/cpu_features.h"
#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "factor_projection_kernels.h"
#include "packed_panels.h"

namespace brainfast {

// Panels of maps begin with so many zeros, and their second entry with a whole step: a class token
// can then be left out.
inline std::int64_t lead_of(const OperandForm& form) { return form.depth_step - 1; }

template <class Operand>
struct ProjectionLayerView {
  std::int64_t tokens, channels;
  Panels<Operand> filters, maps;
};

// Tokens [images, rows, steps] as they lie in memory.
template <class T>
struct TokenMatrix {
  const T* data;
  std::int64_t rows, steps;
  bool maps_inside;
  std::int64_t first_map;  // the map's entry of the first token

  std::int64_t lead(const OperandForm& form) const {
    return maps_inside && first_map == 0 ? lead_of(form) : 0;
  }
  std::int64_t depth(const OperandForm& form) const { return form.depth(lead(form) + steps); }
  std::int64_t padded_rows(const OperandForm& form) const { return padded_to(rows, form.row_step); }
  std::int64_t packed_size(const OperandForm& form) const {
    return form.parts * padded_rows(form) * depth(form);
  }
};

// The piece of a matrix whose operands begin at `tokens`.
template <class Operand, class T>
ProjectionPiece<Operand> piece_of(const TokenMatrix<T>& matrix, const OperandForm& form,
                                  const ProjectionLayerView<Operand>& layer,
                                  const Operand* tokens) {
  const auto& inner = matrix.maps_inside ? layer.maps : layer.filters;
  const auto& outer = matrix.maps_inside ? layer.filters : layer.maps;
  const bool skips = matrix.maps_inside && matrix.first_map != 0;
  ProjectionPiece<Operand> piece{};
  piece.rows = matrix.rows;
  piece.steps = matrix.depth(form);
  piece.tokens = tokens;
  piece.image_stride = matrix.packed_size(form);
  piece.token_part = matrix.padded_rows(form) * piece.steps;
  piece.row_stride = piece.steps;
  piece.inner = inner.data + (skips ? form.depth_step / form.numbers * form.lanes : 0);
  piece.inner_stride = inner.group_stride;
  piece.inner_part = inner.part_stride;
  piece.outer = outer.data;
  piece.outer_stride = outer.group_stride;
  piece.outer_part = outer.part_stride;
  piece.outer_begin = matrix.maps_inside ? 0 : lead_of(form);
  return piece;
}

// Groups of k that a task takes: eight, for tokens that are read once for all of them, but fewer
// where threads would have nothing to do. No sum depends on it.
inline std::int64_t groups_of_task(std::int64_t groups, std::int64_t images, int threads) {
  std::int64_t size = 8;
  while (size > 2 && pieces_of(groups, size) * images < 3 * threads) size /= 2;
  return size;
}

// latent[image,k] = bias[k] + sum over pieces. Operands of the images are in memory already.
template <class Operand, class T, class Project>
void project_images(const ProjectionPiece<Operand>* pieces, std::int64_t piece_count, int parts,
                    std::int64_t images, std::int64_t latent_size, std::int64_t lanes,
                    const T* bias, Project project, T* sums, T* latent, ThreadPool& pool) {
  const std::int64_t groups = pieces_of(latent_size, lanes), stride = groups * lanes;
  const std::int64_t step = groups_of_task(groups, images, pool.size());
  const std::int64_t tasks = pieces_of(groups, step);
  // With many threads, an image for each task.
  const std::int64_t block = tasks >= 3 * pool.size() ? images : 1;
  pool.run(tasks * pieces_of(images, block), [&](std::int64_t index, int) {
    ProjectionTask<Operand, T> task{};
    task.pieces = pieces;
    task.piece_count = piece_count;
    task.parts = parts;
    task.image_begin = index / tasks * block;
    task.image_end = std::min(task.image_begin + block, images);
    task.group_begin = index % tasks * step;
    task.group_end = std::min(task.group_begin + step, groups);
    task.sums = sums;
    task.sum_stride = stride;
    const std::int64_t begin = task.group_begin * lanes, end = task.group_end * lanes;
    for (std::int64_t b = task.image_begin; b < task.image_end; ++b) {
      std::fill(sums + b * stride + begin, sums + b * stride + end, T(0));
    }
    project(task);
    for (std::int64_t b = task.image_begin; b < task.image_end; ++b) {
      for (std::int64_t k = begin; k < std::min(end, latent_size); ++k) {
        latent[b * latent_size + k] = sums[b * stride + k] + (bias ? bias[k] : T(0));
      }
    }
  });
}

// Images whose tokens are held in the last cache while all of the latent passes by.
inline std::int64_t images_at_a_time(std::int64_t bytes_per_image, std::int64_t latent,
                                     std::int64_t lanes, int threads) {
  constexpr std::int64_t kCacheBytes = std::int64_t{8} << 20;
  const std::int64_t fitting = kCacheBytes / std::max<std::int64_t>(bytes_per_image, 1);
  const std::int64_t tasks = pieces_of(std::max<std::int64_t>(latent, 1), 2 * lanes);
  return std::max<std::int64_t>({fitting, pieces_of(3 * threads, tasks), 1});
}

template <class T>
const ProjectionKernels<T>& projection_kernels_of(Isa isa);

// tokens[o,t,c] = sum_k grad_output[o,k] maps[k,t] filters[k,c].
template <class T>
void project_token_gradients(const ProjectionKernels<T>& kernels, std::int64_t images,
                             std::int64_t tokens, std::int64_t channels, std::int64_t latent,
                             const T* grad_output, const T* filters /* [K,C] */,
                             const T* maps /* [K,T] */, T* grad_tokens, Scratch& scratch,
                             ThreadPool& pool);

}  // namespace brainfast
