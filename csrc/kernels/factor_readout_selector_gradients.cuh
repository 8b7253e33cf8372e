// Gradients of what selects the tokens: space, layer and scale. The dots of the forward are made
// again and summed over the images, times the gradient of y.
#pragma once

#include "factor_readout_loader.cuh"
#include "image_sums.cuh"

namespace brainfast::cuda {

constexpr int kChunkTerms = kChunk / kTrainingImages;

// After the forward's shared memory: sums of a chunk [kChunkTerms,kTile], then those of the five
// coefficients [kSlots,kTile].
constexpr int kSumsAt = kForwardBytes;
constexpr int kSelectorBytes =
    kSumsAt + (kChunkTerms + kSlots) * kTile * static_cast<int>(sizeof(float));

struct SelectorArguments {
  Vertices vertices;
  TokenRows tokens;          // kTrainingImages side by side
  const float* grad_output;  // [groups*kTrainingImages,V], sorted, over D
  float* grad_space;         // [V,2], or null
  float* grad_layer;         // [V,L], or null
  float* grad_scale;         // [V], or null
};

// The gradient of y at a vertex of a tile.
__device__ inline float output_gradient(const SelectorArguments& a, const Tile& tile, int vertex,
                                        std::int64_t image) {
  if (vertex >= tile.count) return 0.0f;
  return a.grad_output[image * a.vertices.vertices + tile.begin + vertex];
}

// Adds a chunk's sums to the gradients of this thread's vertex; `first` where there are none yet.
__device__ inline void add_terms(const SelectorArguments& a, const Tile& tile, int chunk,
                                 bool first, const float* sums, float* corners) {
  const Vertices& p = a.vertices;
  const int v = threadIdx.x;
  if (v >= tile.count) return;
  const std::int64_t place = tile.begin + v;
  float* const grad_layer =
      a.grad_layer ? a.grad_layer + static_cast<std::int64_t>(p.order[place]) * p.layers : nullptr;
  for (int i = 0; i < kChunkTerms; ++i) {
    const int term = chunk * kChunkTerms + i;
    if (term >= tile.terms) return;
    const int slot = term / p.layers, layer = term - slot * p.layers, corner = tile.corner[slot];
    const float sum = sums[i * kTile + v];
    corners[corner * kTile + v] +=
        sum * p.layer[static_cast<std::int64_t>(layer) * p.vertices + place];
    if (!grad_layer) continue;
    const float part = sum * p.coefficient[corner * p.vertices + place];
    grad_layer[layer] = first && slot == 0 ? part : grad_layer[layer] + part;
  }
}

// From the gradients of the five coefficients of this thread's vertex.
__device__ inline void write_selectors(const SelectorArguments& a, const Tile& tile,
                                       const float* corners) {
  const Vertices& p = a.vertices;
  const int v = threadIdx.x;
  if (v >= tile.count) return;
  const int place = tile.begin + v;
  const std::int64_t vertex = p.order[place];
  const float x = p.fraction[place], y = p.fraction[p.vertices + place];
  const float nw = corners[v], ne = corners[kTile + v], sw = corners[2 * kTile + v],
              se = corners[3 * kTile + v], whole = corners[4 * kTile + v];
  const float top = nw + x * (ne - nw), bottom = sw + x * (se - sw);
  if (a.grad_scale) a.grad_scale[vertex] = whole - (top + y * (bottom - top));
  if (!a.grad_space) return;
  const float rest = 1 - p.scale[place];
  const float across = ne - nw + y * ((se - sw) - (ne - nw));
  a.grad_space[2 * vertex] = across * rest * p.slope[place];
  a.grad_space[2 * vertex + 1] = (bottom - top) * rest * p.slope[p.vertices + place];
}

template <class Products>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    differentiate_selectors(SelectorArguments a) {
  const TileLoader load(a.vertices, a.tokens);
  float* const sums = reinterpret_cast<float*>(device::shared_memory() + kSumsAt);
  float* const corners = sums + kChunkTerms * kTile;
  for (int index = blockIdx.x; index < *a.vertices.tile_count; index += gridDim.x) {
    const Tile tile = load.begin(index);
    Products products;
    for (int c = 0; c < kSlots; ++c) corners[c * kTile + threadIdx.x] = 0;
    for (int group = 0; group < a.tokens.groups; ++group) {
      for (int slice = 0; slice < a.vertices.slices; ++slice) {
        const auto ready = [&] { products.load_weight(load.weight()); };
        load.each_chunk(
            tile, group, slice, group == 0 || a.vertices.slices > 1, ready,
            [&](int chunk, const unsigned char* rows) {
              sum_images(
                  products, load.weight(), rows, load.columns(tile, chunk),
                  load.steps(slice, Products::kWidth, Products::kUnit), tile.count,
                  [&](int vertex, int lane) {
                    return output_gradient(a, tile, vertex, group * kTrainingImages + lane);
                  },
                  [&](int term, int vertex, float sum) { sums[term * kTile + vertex] = sum; });
              __syncthreads();
              add_terms(a, tile, chunk, group == 0 && slice == 0, sums, corners);
            });
      }
    }
    write_selectors(a, tile, corners);
  }
}

}  // namespace brainfast::cuda
