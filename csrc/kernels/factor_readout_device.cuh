// What the readout's kernels share: the packed form of vertices and tokens, and where it lies.
#pragma once

#include <cstdint>

#include "../runtime/device.h"
#include "factor_readout_cuda.h"
#include "packed_rows.cuh"

namespace brainfast::cuda {

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

}  // namespace brainfast::cuda
