// What the projection's instruction-set objects share: plain structures and tables of functions. No
// inline function lives here, so that none is compiled with one object's flags and run by another.
#pragma once

#include <cstdint>

namespace brainfast {

// A matrix of tokens for every image, and the two factors that reduce it to K numbers:
//   sums[b,k] += sum_r outer[k,r] (sum_s inner[k,s] tokens[b,r,s])
// Tokens [T,C] have filters inside and maps outside; tokens [C,T], the other way round. So either
// is read as it lies in memory, along its rows. Factors are panels of lanes over k, the same ones
// inside and outside.
//
// An operand is one number, or a pair of bfloat16 along the steps; then `steps` counts pairs, and
// the panel of `outer` holds pairs of its rows.
template <class Operand>
struct ProjectionPiece {
  std::int64_t rows, steps;
  const Operand* tokens;  // [images, parts, rows, steps], strides in operands
  std::int64_t image_stride, token_part, row_stride;
  const Operand* inner;  // [groups, parts, steps, lanes]
  std::int64_t inner_stride, inner_part;
  const Operand* outer;  // [groups, parts, entries, lanes]
  std::int64_t outer_stride, outer_part;
  std::int64_t outer_begin;  // the entry, in numbers, that belongs to row 0
};

// Some images and groups of k, through every piece.
template <class Operand, class Sum>
struct ProjectionTask {
  const ProjectionPiece<Operand>* pieces;
  std::int64_t piece_count;
  int parts;  // 1, or 2 with the low halves of bf16x3 behind the high ones
  std::int64_t image_begin, image_end;
  std::int64_t group_begin, group_end;
  Sum* sums;  // [images, sum_stride], added to
  std::int64_t sum_stride;
};

// Rows of the tokens' gradient: tokens [rows, C] = sum_k grad_output[k] maps[k,row] filters[k].
template <class T>
struct ProjectionTokenTask {
  std::int64_t latent, channels, map_stride;
  std::int64_t row_begin, row_end;
  const T* grad_output;  // [K], one image's
  const T* maps;         // [K, map_stride]
  const T* filters;      // [C/lanes, K, lanes]
  T* tokens;             // [T,C], one image's
  T* scratch;
};

// Gradients of some groups of k. Null: not wanted.
template <class T>
struct ProjectionFactorTask {
  std::int64_t images, tokens, channels;
  std::int64_t group_begin, group_end;
  const T* source;       // [B,T,C]
  const T* grad_output;  // [groups, B, lanes]
  const T* filters;      // [groups, C, lanes]
  const T* maps;         // [groups, T, lanes]
  T* grad_filters;       // [groups, C, lanes], zeros at first
  T* grad_maps;          // [groups, T, lanes], zeros at first
  T* scratch;
};

template <class T>
struct ProjectionKernels {
  int lanes;
  int max_rows;

  void (*pack)(const T* from, std::int64_t row_stride, std::int64_t rows, std::int64_t steps,
               T* to);
  void (*unpack)(const T* from, std::int64_t rows, std::int64_t steps, T* to,
                 std::int64_t row_stride);
  void (*project)(const ProjectionTask<T, T>&);
  std::int64_t (*token_scratch)(std::int64_t latent, std::int64_t rows);
  void (*token_gradients)(const ProjectionTokenTask<T>&);
  std::int64_t (*factor_scratch)();
  void (*factor_gradients)(const ProjectionFactorTask<T>&);
};

struct BFloatProjectionKernels {
  int depth_step;  // steps are padded to a multiple of it, in numbers
  int row_step;    // rows of an image's packed tokens are padded to a multiple of it

  // Rows [rows, steps] -> bfloat16 [padded rows, depth], `lead` zeros before the first step and
  // zeros behind the last one. Part 0 is the rounded number, part 1 what that leaves over.
  void (*pack_rows)(const float* from, std::int64_t rows, std::int64_t steps, std::int64_t lead,
                    std::int64_t padded_rows, std::int64_t depth, int part, std::uint16_t* to);
  void (*project)(const ProjectionTask<std::uint32_t, float>&);
};

const ProjectionKernels<float>& projection_kernels_portable();
const ProjectionKernels<double>& projection_kernels_portable_double();
const ProjectionKernels<float>& projection_kernels_avx2();
const ProjectionKernels<float>& projection_kernels_avx512();
const BFloatProjectionKernels& bfloat_projection_kernels_avx512bf16();
const BFloatProjectionKernels& bfloat_projection_kernels_amx();
const BFloatProjectionKernels& bfloat_projection_kernels_amx_emulated();

}  // namespace brainfast
