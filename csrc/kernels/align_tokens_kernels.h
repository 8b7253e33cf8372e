// What the instruction-set objects of align_tokens share: plain structures and a table of
// functions. No inline function lives here, so that none is compiled with one object's flags and
// run by another.
#pragma once

#include <cstdint>

namespace brainfast {

constexpr std::int64_t kAlignPixels = 32;    // target pixels of a task: two AVX-512 vectors
constexpr std::int64_t kAlignSteps = 128;    // trunk channels packed at a time, for L1
constexpr std::int64_t kAlignColumns = 4;    // vectors of aligned channels in a block of a product
constexpr std::int64_t kAlignRowWidth = 64;  // widest source row that is resampled as vectors
constexpr std::int64_t kAlignRowBuffer = (kAlignPixels + 2) * kAlignRowWidth;

// How the target grid is read from a source grid.
struct AlignTaps {
  enum Mode { copy, windows, single };
  Mode mode;
  bool reads_all;              // every token has a part in an answer of `copy` or `windows`
  std::int64_t height, width;  // of the source
  std::int64_t row_stride;     // windows: elements between rows that are resampled vertically
  // Two source rows and the second's weight for each target row; elements, not rows.
  const std::int32_t* low_row;   // [H]
  const std::int32_t* high_row;  // [H]
  const float* row_weight;       // [H]
  // The same for columns. `windows`: places in the vector's window of two vectors.
  const std::int32_t* low_column;   // [P], and up to a whole vector
  const std::int32_t* high_column;  // the same
  const float* column_weight;       // the same
  const std::int32_t* window;       // windows: [vectors], from the first row that the task reads
  const float* mean;                // [height * width], what the mean over the target grid weighs
};

// One image's layer: target pixels of one block, aligned channels row_begin..row_end.
struct AlignLocalTask {
  const AlignTaps* taps;
  const float* tokens;  // [C_l, height * width]
  const float* end;     // of the array that `tokens` points into
  std::int64_t trunk_channels;
  const float* weight;  // from pack_rows
  const float* offset;  // [D]
  std::int64_t channels, target_width, pixels;
  std::int64_t block;               // kAlignPixels wide
  std::int64_t row_begin, row_end;  // begin: a multiple of max_rows
  float* output;                    // [D, pixels]
  float* scratch;
};

// One layer's vectors of every image, aligned channels of one block.
struct AlignVectorTask {
  std::int64_t images;
  const float* tokens;  // [B, C_l]
  std::int64_t trunk_channels;
  const float* weight;  // from pack_columns
  const float* offset;  // [D]
  std::int64_t channels;
  std::int64_t block;  // kAlignColumns * lanes wide
  float* output;       // [B, D], image_stride apart
  std::int64_t image_stride;
};

struct AlignKernels {
  int lanes;
  int max_rows;

  // Elements of scratch that a local task needs.
  std::int64_t (*local_scratch)(std::int64_t channels);
  // Local tokens through resampling and product. False where a token is not finite; every token is
  // looked at by the tasks with row_begin = 0 together.
  bool (*local)(const AlignLocalTask&);
  // False where a token is not finite.
  bool (*vectors)(const AlignVectorTask&);
  // pooled[c] = mean . tokens[c]; false where a token is not finite.
  bool (*pool)(const AlignTaps&, const float* tokens, std::int64_t trunk_channels, float* pooled);
};

const AlignKernels& align_kernels_portable();
const AlignKernels& align_kernels_avx2();
const AlignKernels& align_kernels_avx512();

}  // namespace brainfast
