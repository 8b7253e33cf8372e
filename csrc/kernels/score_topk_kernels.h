// What the instruction-set objects of score_topk share: plain structures and tables of functions.
// No inline function lives here, so that none is compiled with one object's flags and run by
// another.
#pragma once

#include <cstddef>
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

// Single candidates, wherever they lie, against one objective, over a chunk of the features.
struct PairTask {
  static constexpr int kRows = 4;
  const void* features[kRows];  // each [steps] of the pool's kind; repeated where fewer are wanted
  std::int64_t objective;
  std::int64_t objectives;  // O
  std::int64_t steps;
  const void* templates;  // packed, as ScoreTask has them
  float sums[kRows];      // what this chunk gives is added
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
  // The same bits as `score` gives, slower for each pair; null for tiles.
  void (*score_pairs)(PairTask&);
};

// Some candidates against every objective in rounded numbers, over a chunk of the features.
struct ScreenTask {
  std::int64_t rows;            // at most kScreenRows
  std::int64_t objectives;      // padded to a multiple of kScreenColumns
  std::int64_t count;           // features
  std::int64_t steps;           // features with what pads them: a multiple of kScreenDepth
  const void* features;         // [rows, count] of the pool's kind, at any address of theirs
  std::int64_t feature_stride;  // features from row to row
  const void* templates;        // packed
  std::byte* operands;          // room for the rounded rows: kScreenRows of 2 * steps bytes
  // What this chunk gives is added; rows are padded to kScreenRows.
  float* sums;        // [rows, padded objectives]
  float* squares;     // [rows], of the norm of what was multiplied
  float* deviations;  // [rows], a bound on the square of the norm of what rounding changed
  // Rows of as many bytes that a later task reads, to be fetched beside the arithmetic.
  const char* ahead;
  std::int64_t ahead_rows, ahead_stride;
};

// How far the rounded score of one candidate may be from the score, and which bar it must reach:
// bound = norm * of_norm + deviation * of_deviation + least.
struct ReachTask {
  std::int64_t objectives;  // padded
  float norm, deviation;
  float scale;                                         // of the candidate, or 1
  const float *of_norm, *of_deviation, *least, *bars;  // [padded objectives]
  float* sums;            // [padded objectives] in; out: the most that each score can be
  std::uint8_t* reached;  // [padded objectives / 8], a bit for each that may reach its bar
};

constexpr int kScreenRows = 12;
constexpr int kScreenColumns = 8;
constexpr int kScreenDepth = 128;
// Features of a chunk: their templates and candidates stay in L1 and L2.
constexpr std::int64_t kScreenChunk = 2048;

// For one kind of features and one kind of rounding.
struct ScreenKernels {
  int numbers;         // of features that a word of 32 bits holds: 2 of bfloat16, 4 of int8
  int most_roundings;  // of a sum, for each of its words

  // One objective's `count` features of a chunk, zeros up to `steps`, into the packed chunk of
  // screen_bytes; what rounding leaves over takes their place.
  void (*pack)(float* numbers, std::int64_t count, std::int64_t steps, std::int64_t objective,
               std::int64_t objectives, void* to);
  void (*screen)(const ScreenTask&);
  // The same in two parts, for pools that keep what is rounded: operands [kScreenRows, steps] and
  // units [rows], with `squares` and `deviations`; and then `sums`, with `ahead` among operands.
  // Null for bfloat16.
  void (*round)(const ScreenTask&, std::byte* operands, float* units);
  void (*multiply)(const ScreenTask&, const std::byte* operands, const float* units);
  void (*reach)(const ReachTask&);
};

enum class Rounding { int8, bfloat16 };

const ScreenKernels& screen_kernels_avx512bf16(FeatureKind kind, Rounding rounding);

// The last three are for bfloat16 and int8 alone.
const ScoreKernels& score_kernels_portable(FeatureKind kind);
const ScoreKernels& score_kernels_avx2(FeatureKind kind);
const ScoreKernels& score_kernels_avx512(FeatureKind kind);
const ScoreKernels& score_kernels_avx512bf16(FeatureKind kind);
const ScoreKernels& score_kernels_amx(FeatureKind kind);
const ScoreKernels& score_kernels_amx_emulated(FeatureKind kind);

}  // namespace brainfast
