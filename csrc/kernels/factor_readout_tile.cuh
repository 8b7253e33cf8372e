// A tile of vertices times chunks of tokens: dots [vertices, columns], which never leave registers.
//
// Columns of a tile are (corner, layer, image) with the images, `lanes` of them, side by side:
// column = k lanes + image, k = slot layers + layer. A slot is one of the cell's corners inside the
// image, or the global tokens, which come last.
#pragma once

#include "factor_readout_device.cuh"

namespace brainfast::cuda {

constexpr int kSlots = 5;

// One tile, as every thread of its block sees it.
struct Tile {
  int begin, count;   // of the vertices, in the order
  int terms;          // slots * layers
  const int* corner;  // [slots], 0..3 or 4 for the global tokens; in shared memory
  const int* pixel;   // [slots], pixels() for the global tokens; in shared memory
};

// Written by one thread, read by all after the next barrier: slots, corners, pixels.
struct SharedSlots {
  int count;
  int corner[kSlots];
  int pixel[kSlots];

  __device__ void fill(const Vertices& p, int cell) {
    count = 0;
    for (int c = 0; c < 4; ++c) {
      const int at = corner_pixel(p, cell, c);
      if (at < 0) continue;
      corner[count] = c;
      pixel[count++] = at;
    }
    corner[count] = 4;
    pixel[count++] = p.pixels();
  }
};

// The two factors of a term's selectors, at each vertex of a tile.
struct Term {
  const float* coefficient;
  const float* layer;

  __device__ Term(const Vertices& p, const Tile& tile, int term) {
    const int slot = term / p.layers;
    const std::int64_t l = term - slot * p.layers;
    coefficient = p.coefficient + tile.corner[slot] * p.vertices + tile.begin;
    layer = p.layer + l * p.vertices + tile.begin;
  }

  // What a dot product counts in y.
  __device__ float selector(int vertex) const { return coefficient[vertex] * layer[vertex]; }
};

// The row of a column of this tile and group of images; the zero row past the last.
__device__ inline std::int64_t token_row(const Vertices& p, const TokenRows& x, const Tile& tile,
                                         int group, int column) {
  const int term = column >> x.shift;
  if (term >= tile.terms) return x.rows - 1;
  const int slot = term / p.layers, layer = term - slot * p.layers;
  const int pixel = tile.pixel[slot], lanes = 1 << x.shift;
  const std::int64_t token = static_cast<std::int64_t>(group) * (p.pixels() + 1) + pixel;
  return ((token * p.layers + layer) << x.shift) + (column & (lanes - 1));
}

// Products on tensor cores. Each of four warps has 32 vertices; their weights of a slice stay in
// registers, so that a chunk is read once by each warp.
template <Precision kPrecision>
class TensorTile {
 public:
  static constexpr bool kSplit = kPrecision == Precision::bf16x3;
  static constexpr int kSteps = slice_channels(kPrecision) / 16;  // of the longest slice
  static constexpr int kFragments = kSplit ? 2 * kSteps : kSteps;
  static constexpr int kRows = 4;         // of a thread's sums: lane / 4 + 0, 8, 16, 24
  static constexpr int kWindow = kChunk;  // terms whose selectors lie in shared memory

  __device__ TensorTile() : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  // The vertex of the tile that row r of this thread belongs to.
  __device__ int vertex(int r) const { return warp_ * 32 + r * 8 + lane_ / 4; }
  // The first of the two columns next to each other that this thread has in every eight.
  __device__ int column() const { return 2 * (lane_ % 4); }

  __device__ void load_weight(const unsigned char* rows) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = warp_ * 32 + m * 16 + lane_ / 8 % 2 * 8 + lane_ % 8;
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
    if (warp_ * 32 >= count) return;
    // Without a branch a step, its loads run ahead of the products.
    if (steps == kSteps) {
      multiply_steps<true>(rows, columns, steps, use);
    } else {
      multiply_steps<false>(rows, columns, steps, use);
    }
  }

 private:
  template <bool kAll, class Use>
  __device__ void multiply_steps(const unsigned char* rows, int columns, int steps,
                                 Use&& use) const {
    const unsigned char* const row =
        rows + (lane_ / 16 * 8 + lane_ % 8) * kRowBytes + lane_ / 8 % 2 * 16;
    for (int first = 0; first < columns; first += 16) {
      float sums[2][2][4] = {};  // [eight columns][16 vertices]
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (!kAll && step >= steps) continue;
        unsigned high[4];
        device::load_matrices(high, row + first * kRowBytes + step * 32);
        add_products(sums, step, high);
        if constexpr (kSplit) {
          unsigned low[4];
          device::load_matrices(low, row + first * kRowBytes + (step + kSteps) * 32);
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
  }

  __device__ void add_products(float (&sums)[2][2][4], int fragment,
                               const unsigned (&tokens)[4]) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        device::multiply_add(sums[half][m], weight_[m][fragment], tokens[2 * half],
                             tokens[2 * half + 1]);
      }
    }
  }

  int warp_, lane_;
  unsigned weight_[2][kFragments][4];
};

// Products by multiply-add in float32. A thread has every 16th of the vertices and every 8th of a
// chunk's columns.
class ScalarTile {
 public:
  static constexpr int kRows = 8, kColumns = 8;

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
};

}  // namespace brainfast::cuda
