// Products of a tile of rows that stay with chunks of rows that pass by: dots [rows, columns], a
// column for each row that passes, which never leave registers.
#pragma once

#include "packed_rows.cuh"

namespace brainfast::cuda {

// The place of row v of a tile where the four rows of a thread of TensorTile are neighbours.
__host__ __device__ constexpr int side_by_side(int v) {
  return v / 32 * 32 + v % 8 * 4 + v % 32 / 8;
}

// Sums over the lanes whose columns hold the same images, `apart` being the first such distance;
// the lanes of one row are `lanes`.
__device__ inline float add_lanes(float value, int apart, int lanes) {
  for (int step = apart; step < lanes; step *= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// Products on tensor cores. Each of four warps has kBands times 16 vertices (rows); their weights
// of a slice stay in registers, so that a chunk is read once by each warp.
template <Precision kPrecision, int kBands = 2>
class TensorTile {
 public:
  static constexpr bool kSplit = kPrecision == Precision::bf16x3;
  static constexpr int kWidth = slice_channels(kPrecision), kUnit = 16;  // channels of a step
  static constexpr int kSteps = kWidth / kUnit;                          // of the longest slice
  static constexpr int kFragments = kSplit ? 2 * kSteps : kSteps;
  static constexpr int kRows = 2 * kBands;  // of a thread's sums: lane / 4 + 0, 8, 16, 24
  static constexpr int kWindow = kChunk;    // terms whose selectors lie in shared memory

  __device__ TensorTile() : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  // The vertex of the tile that row r of this thread belongs to.
  __device__ int vertex(int r) const { return warp_ * 16 * kBands + r * 8 + lane_ / 4; }
  // The first of the two columns next to each other that this thread has in every eight.
  __device__ int column() const { return 2 * (lane_ % 4); }

  __device__ void load_weight(const unsigned char* rows) {
#pragma unroll
    for (int m = 0; m < kBands; ++m) {
      const int row = warp_ * 16 * kBands + m * 16 + lane_ / 8 % 2 * 8 + lane_ % 8;
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        device::load_matrices(weight_[m][f], rows + row * kRowBytes + f * 32 + lane_ / 16 * 16);
      }
    }
  }

  // Calls use(first column, sums) for every eight columns of a chunk that has `columns`;
  // sums[r][0..1] is row r in this thread's two columns. `steps` 16s of channels are not padding.
  template <class Use>
  __device__ void multiply(const unsigned char* rows, int columns, int steps, int count,
                           Use&& use) const {
    if (warp_ * 16 * kBands >= count) return;
    // Without a branch a step, its loads run ahead of the products.
    if (steps == kSteps) {
      multiply_steps<true>(rows, columns, steps, use);
    } else {
      multiply_steps<false>(rows, columns, steps, use);
    }
  }

  // totals += the products of a chunk of at most kColumns columns, channels step by step.
  template <int kColumns>
  __device__ void accumulate(const unsigned char* rows, int columns, int steps,
                             float (&totals)[kColumns / 8][kRows][2]) const {
#pragma unroll
    for (int first = 0; first < kColumns; first += 16) {
      if (first >= columns) break;
      multiply_columns<false>(rows, first, steps, [&](int column, const float (&sums)[kRows][2]) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          totals[column / 8][r][0] += sums[r][0];
          totals[column / 8][r][1] += sums[r][1];
        }
      });
    }
  }

  // Adds up y [kRows][2], sums of this thread's columns, over the columns of one image where
  // 1 << shift of them stand side by side, and calls use(vertex, image, sum).
  template <class Use>
  __device__ void each_image(float (&y)[kRows][2], int shift, Use&& use) const {
    const int lanes = 1 << shift;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (shift == 0) y[r][0] += y[r][1];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float sum = add_lanes(y[r][side], lanes > 1 ? lanes / 2 : 1, 4);
        const int image = column() + side;
        if (image < lanes) use(vertex(r), image, sum);
      }
    }
  }

 private:
  template <bool kAll, class Use>
  __device__ void multiply_steps(const unsigned char* rows, int columns, int steps,
                                 Use&& use) const {
    for (int first = 0; first < columns; first += 16)
      multiply_columns<kAll>(rows, first, steps, use);
  }

  // Of 16 columns from `first` on.
  template <bool kAll, class Use>
  __device__ void multiply_columns(const unsigned char* rows, int first, int steps,
                                   Use&& use) const {
    const unsigned char* const row =
        rows + (first + lane_ / 16 * 8 + lane_ % 8) * kRowBytes + lane_ / 8 % 2 * 16;
    float sums[2][kBands][4] = {};  // [eight columns][16 vertices]
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (!kAll && step >= steps) continue;
      unsigned high[4];
      device::load_matrices(high, row + step * 32);
      add_products(sums, step, high);
      if constexpr (kSplit) {
        unsigned low[4];
        device::load_matrices(low, row + (step + kSteps) * 32);
        add_products(sums, step, low);
        add_products(sums, step + kSteps, high);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float found[kRows][2];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        found[r][0] = sums[half][r / 2][r % 2 * 2];
        found[r][1] = sums[half][r / 2][r % 2 * 2 + 1];
      }
      use(first + half * 8, found);
    }
  }

  __device__ void add_products(float (&sums)[2][kBands][4], int fragment,
                               const unsigned (&tokens)[4]) const {
#pragma unroll
    for (int m = 0; m < kBands; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        device::multiply_add(sums[half][m], weight_[m][fragment], tokens[2 * half],
                             tokens[2 * half + 1]);
      }
    }
  }

  int warp_, lane_;
  unsigned weight_[kBands][kFragments][4];
};

// Products by multiply-add in float32. A thread has every 16th of the vertices (rows), kOwnRows of
// them, and every 8th of a chunk's columns.
template <int kOwnRows, int kOwnColumns>
class ScalarProducts {
 public:
  static constexpr int kRows = kOwnRows, kColumns = kOwnColumns;
  static constexpr int kWidth = slice_channels(Precision::fp32), kUnit = 4;  // channels of a step

  __device__ int vertex(int r) const { return static_cast<int>(threadIdx.x) / 8 + 16 * r; }
  __device__ int column() const { return threadIdx.x % 8; }

  // Weights stay in shared memory.
  __device__ void load_weight(const unsigned char*) {}

  // Calls use(sums): sums[r][j] is row r in column() + 8 j. `steps` fours of channels are not
  // padding.
  template <class Use>
  __device__ void multiply(const unsigned char* weight, const unsigned char* rows, int steps,
                           Use&& use) const {
    float sums[kRows][kColumns] = {};
    for (int step = 0; step < steps; ++step) {
      float4 w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        w[r] = *reinterpret_cast<const float4*>(weight + vertex(r) * kRowBytes + step * 16);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float4 x =
            *reinterpret_cast<const float4*>(rows + (column() + 8 * j) * kRowBytes + step * 16);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          sums[r][j] += w[r].x * x.x;
          sums[r][j] += w[r].y * x.y;
          sums[r][j] += w[r].z * x.z;
          sums[r][j] += w[r].w * x.w;
        }
      }
    }
    use(sums);
  }

  // Adds up y [kRows], sums of this thread's columns, over the columns of one image where
  // 1 << shift of them stand side by side, and calls use(vertex, image, sum).
  template <class Use>
  __device__ void each_image(const float (&y)[kRows], int shift, Use&& use) const {
    const int lanes = 1 << shift;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = add_lanes(y[r], lanes, 8);
      if (column() < lanes) use(vertex(r), column(), sum);
    }
  }
};

using ScalarTile = ScalarProducts<8, 8>;

}  // namespace brainfast::cuda
