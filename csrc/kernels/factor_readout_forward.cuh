// y of a tile of vertices: dots with the tokens that their cell reads, weighed by the selectors in
// registers. Blocks stay and take one tile after another.
#pragma once

#include "factor_readout_loader.cuh"

namespace brainfast::cuda {

struct ForwardArguments {
  Vertices vertices;
  TokenRows tokens;
  int parts;      // that the groups of images are cut into, each a unit with every tile
  float* output;  // [B,V]
};

__device__ inline void write_answer(const ForwardArguments& a, const Tile& tile, int vertex,
                                    std::int64_t image, float sum) {
  const Vertices& p = a.vertices;
  if (vertex >= tile.count || image >= a.tokens.images) return;
  const int place = tile.begin + vertex;
  a.output[image * p.vertices + p.order[place]] =
      sum / static_cast<float>(p.channels) + p.bias[place];
}

// Selectors of kWindow terms from `base` on, for as many vertices as there are threads.
template <class Products>
__device__ void fill_selectors(const Vertices& p, const Tile& tile, int base, float* selectors) {
  const int v = threadIdx.x, at = side_by_side(v);
  const int place = v < tile.count ? tile.begin + v : -1;
  const int left = (tile.terms - base + 15) / 16 * 16;
  int slot = base / p.layers, layer = base - slot * p.layers;
  float coefficient = 0;
  for (int term = 0; term < (left < Products::kWindow ? left : Products::kWindow); ++term) {
    const bool real = place >= 0 && base + term < tile.terms;
    if (real && (term == 0 || layer == 0)) {
      coefficient = p.coefficient[tile.corner[slot] * p.vertices + place];
    }
    selectors[term * kTile + at] =
        real ? coefficient * p.layer[static_cast<std::int64_t>(layer) * p.vertices + place] : 0.0f;
    if (++layer == p.layers) {
      layer = 0;
      ++slot;
    }
  }
}

// y of one tile and group of images, on tensor cores.
template <class Products>
__device__ void answer_group(const ForwardArguments& a, const TileLoader& load, const Tile& tile,
                             Products& products, int group, bool first_group) {
  const Vertices& p = a.vertices;
  const int shift = a.tokens.shift, lanes = 1 << shift;
  float* const selectors = reinterpret_cast<float*>(load.weight());
  float y[Products::kRows][2] = {};
  for (int slice = 0; slice < p.slices; ++slice) {
    const bool fresh = first_group || p.slices > 1;
    const int steps = load.steps(slice, Products::kWidth, Products::kUnit);
    const auto ready = [&] { products.load_weight(load.weight()); };
    load.each_chunk(tile, group, slice, fresh, ready, [&](int chunk, const unsigned char* rows) {
      // Selectors lie where the weights were, which are in registers by now.
      const int base = chunk * kChunk >> shift, window = base % Products::kWindow;
      if (window == 0 && (fresh || tile.terms > Products::kWindow)) {
        fill_selectors<Products>(p, tile, base, selectors);
        __syncwarp();  // a warp reads what it has filled itself
      }
      products.multiply(rows, load.columns(tile, chunk), steps, tile.count,
                        [&](int column, const float (&sums)[Products::kRows][2]) {
                          const float* const own = selectors + side_by_side(products.vertex(0));
#pragma unroll
                          for (int side = 0; side < 2; ++side) {
                            const int term = (column + products.column() + side) >> shift;
                            const float4 s =
                                *reinterpret_cast<const float4*>(own + (window + term) * kTile);
                            y[0][side] += sums[0][side] * s.x;
                            y[1][side] += sums[1][side] * s.y;
                            y[2][side] += sums[2][side] * s.z;
                            y[3][side] += sums[3][side] * s.w;
                          }
                        });
    });
  }
  products.each_image(y, shift, [&](int vertex, int image, float sum) {
    write_answer(a, tile, vertex, static_cast<std::int64_t>(group) * lanes + image, sum);
  });
}

// The same in strict float32: weights stay in shared memory.
__device__ inline void answer_group(const ForwardArguments& a, const TileLoader& load,
                                    const Tile& tile, ScalarTile& products, int group,
                                    bool first_group) {
  const Vertices& p = a.vertices;
  const int shift = a.tokens.shift, lanes = 1 << shift;
  float y[ScalarTile::kRows] = {};
  for (int slice = 0; slice < p.slices; ++slice) {
    const int steps = load.steps(slice, ScalarTile::kWidth, ScalarTile::kUnit);
    const bool fresh = first_group || p.slices > 1;
    load.each_chunk(
        tile, group, slice, fresh, [] {},
        [&](int chunk, const unsigned char* rows) {
          products.multiply(load.weight(), rows, steps,
                            [&](const float (&sums)[ScalarTile::kRows][ScalarTile::kColumns]) {
#pragma unroll
                              for (int j = 0; j < ScalarTile::kColumns; ++j) {
                                const int column = chunk * kChunk + products.column() + 8 * j;
                                if (column >> shift >= tile.terms) continue;
                                const Term term(p, tile, column >> shift);
#pragma unroll
                                for (int r = 0; r < ScalarTile::kRows; ++r) {
                                  const int v = products.vertex(r);
                                  if (v < tile.count) y[r] += sums[r][j] * term.selector(v);
                                }
                              }
                            });
        });
  }
  products.each_image(y, shift, [&](int vertex, int image, float sum) {
    write_answer(a, tile, vertex, static_cast<std::int64_t>(group) * lanes + image, sum);
  });
}

template <class Products>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) answer_tiles(ForwardArguments a) {
  const TileLoader load(a.vertices, a.tokens);
  const int groups = (a.tokens.groups + a.parts - 1) / a.parts;
  const int units = *a.vertices.tile_count * a.parts;
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Tile tile = load.begin(unit / a.parts);
    const int first = unit % a.parts * groups;
    Products products;
    for (int group = first; group < first + groups && group < a.tokens.groups; ++group) {
      answer_group(a, load, tile, products, group, group == first);
    }
  }
}

}  // namespace brainfast::cuda
