// What the readout's kernels share: the packed form of vertices and tokens, and where it lies.
//
// Weights and tokens are rows of kRowBytes, a slice of the channels each: 128 bfloat16, or 64
// float32, or 64 numbers as the high and then the low halves of bf16x3. The 16 bytes of padding
// spread the rows over the banks of shared memory. The last row of each slice is zero.
#pragma once

#include <cstdint>

#include "../runtime/device.h"
#include "factor_readout_cuda.h"
#include "tensor_core.cuh"

namespace brainfast::cuda {

constexpr int kRowBytes = 272, kRowData = 256;
constexpr int kTile = 128;  // vertices of a tile, or rows of a product
constexpr int kChunk = 64;  // rows that are copied to shared memory at a time
constexpr int kThreads = 128;
constexpr int kChunkBytes = kChunk * kRowBytes;
constexpr int kTrainingImages = 8;  // that stand side by side in the rows of tokens

__host__ __device__ constexpr int slice_channels(Precision precision) {
  return precision == Precision::bf16 ? 128 : 64;
}

// A tile's vertices, in the order, and the cell that they share.
struct alignas(16) TileRecord {
  int begin, count, cell;
};

// Of one call's parameters, in the order of the cells: by cell, then by the caller's index.
struct Vertices {
  int vertices, layers, channels, height, width;
  int slices;  // of the channels
  bool align_corners;
  int* order;             // [V], the caller's index
  int* cell;              // [V]
  int* cell_begin;        // [(H+1)*(W+1)+1], in the order
  TileRecord* tiles;      // [tile_count]
  int* tile_count;        // [1]
  float* coefficient;     // [5,V], four corners and the global tokens
  float* layer;           // [L,V]
  float* fraction;        // [2,V], x and y inside the cell
  float* slope;           // [2,V], pixels per unit of space; 0 where nothing is read
  float* scale;           // [V]
  float* bias;            // [V]
  unsigned char* weight;  // [slices,V+1] rows

  __host__ __device__ int pixels() const { return height * width; }
  __host__ __device__ int cells() const { return (height + 1) * (width + 1); }
};

// Row ((group (pixels + 1) + pixel) layers + layer) lanes + image % lanes, the global tokens last
// of the pixels; images past the last are zero.
struct TokenRows {
  int images, groups;
  int shift;            // lanes = 1 << shift images side by side
  std::int64_t rows;    // of a slice, the zero row included
  unsigned char* data;  // [slices,rows] rows
};

// The pixel at `corner` (0..3: y0x0 y0x1 y1x0 y1x1) of a cell, -1 outside the image.
__host__ __device__ inline int corner_pixel(const Vertices& p, int cell, int corner) {
  const int x = cell % (p.width + 1) - 1 + corner % 2;
  const int y = cell / (p.width + 1) - 1 + corner / 2;
  return x >= 0 && x < p.width && y >= 0 && y < p.height ? y * p.width + x : -1;
}

// Starts this thread's part of copying kChunk rows to shared memory: row_index(r) is the source of
// row r. Four threads stand at a row, so that 64 bytes next to each other are copied at a time.
template <class RowIndex>
__device__ inline void copy_chunk(unsigned char* to, const unsigned char* rows,
                                  RowIndex&& row_index) {
  const int quarter = threadIdx.x % 4;
  for (int r = threadIdx.x / 4; r < kChunk; r += kThreads / 4) {
    const unsigned char* const from = rows + row_index(r) * kRowBytes;
    for (int part = quarter; part < kRowData / 16; part += 4) {
      device::copy_async(to + r * kRowBytes + part * 16, from + part * 16);
    }
  }
}

}  // namespace brainfast::cuda
