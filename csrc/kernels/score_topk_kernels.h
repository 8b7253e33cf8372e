// What the instruction-set objects of score_topk share: plain structures and tables of functions.
// No inline function lives here, so that none is compiled with one object's flags and run by
// another.
#pragma once

#include <cstdint>

#include "score_topk.h"

namespace brainfast {

// Some candidates against every objective, over a chunk of the features.
struct ScoreTask {
  std::int64_t rows;            // at most max_rows
  std::int64_t objectives;      // O
  std::int64_t steps;           // features, a multiple of depth_step
  const void* features;         // [rows, steps] of the pool's kind, at any address of theirs
  std::int64_t feature_stride;  // features from row to row
  const void* templates;        // packed
  int parts;                    // of the templates: 2 with the low halves of bf16x3
  float* sums;                  // [rows, O]; what this chunk gives is added
  // Rows of as many bytes that a later task reads, to be fetched beside the arithmetic.
  const char* ahead;
  std::int64_t ahead_rows, ahead_stride;  // none, or bytes from row to row
};

// For one kind of features.
struct ScoreKernels {
  int depth_step;      // chunks are padded with zeros to a multiple of it
  int max_rows;        // of a task
  int row_step;        // a task may read rows up to a multiple of it
  int objective_step;  // packed objectives are padded to a multiple of it
  int template_bytes;  // of a packed number

  // One objective's `count` features of a chunk into the packed chunk
  // [padded objectives, parts, steps], in the order that `score` reads; zeros up to `steps`.
  void (*pack)(const float* from, std::int64_t count, std::int64_t steps, std::int64_t objective,
               std::int64_t objectives, int parts, void* to);
  void (*score)(const ScoreTask&);
};

// The last three are for bfloat16 and int8 alone.
const ScoreKernels& score_kernels_portable(FeatureKind kind);
const ScoreKernels& score_kernels_avx2(FeatureKind kind);
const ScoreKernels& score_kernels_avx512(FeatureKind kind);
const ScoreKernels& score_kernels_avx512bf16(FeatureKind kind);
const ScoreKernels& score_kernels_amx(FeatureKind kind);
const ScoreKernels& score_kernels_amx_emulated(FeatureKind kind);

}  // namespace brainfast
