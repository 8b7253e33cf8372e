// A tile of vertices times chunks of tokens: dots [vertices, columns], which never leave registers.
//
// Columns of a tile are (corner, layer, image) with the images, `lanes` of them, side by side:
// column = k lanes + image, k = slot layers + layer. A slot is one of the cell's corners inside the
// image, or the global tokens, which come last.
#pragma once

#include "factor_readout_device.cuh"
#include "row_products.cuh"

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

}  // namespace brainfast::cuda
