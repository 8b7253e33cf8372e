// Gradients of one layer's projection, with kTrainingImages images side by side. The dots of the
// forward are made again for the maps; those of filters and tokens are sums of outer products,
// whose left factors are the gradient of the latent times the maps. Sums are made in pieces, which
// are then added in their order: no atomic addition, the same bits on every run.
#pragma once

#include "factor_projection_device.cuh"
#include "outer_product.cuh"

namespace brainfast::cuda {

constexpr int kBlockTokens = kChunk / kTrainingImages;  // of a chunk of columns
constexpr int kTileTokens = kTile / kTrainingImages;    // of a tile of columns

// Shared memory: a tile of filters or left factors, two chunks, the sums of a block of tokens.
constexpr int kOuterBytes = kTile * kRowBytes + 2 * kChunkBytes;
constexpr int kMapGradientBytes = kOuterBytes + kBlockTokens * kTile * 4;

struct ProjectionGradientArguments {
  Projection projection;     // one layer
  const float* grad_output;  // [B,K]
  int pieces;                // of the sum over tokens and images
  float* grad;               // of what the kernel is for

  __device__ float output(int image, int k) const {
    const Projection& p = projection;
    return image < p.images && k < p.latent
               ? grad_output[static_cast<std::int64_t>(image) * p.latent + k]
               : 0.0f;
  }
};

__device__ inline unsigned char* chunk_place(unsigned char* shared, int turn) {
  return shared + kTile * kRowBytes + turn % 2 * kChunkBytes;
}

// grad_maps [K,T]: a tile of latents and a block of tokens at a time.
template <Precision kPrecision, class Products>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    differentiate_maps(ProjectionGradientArguments a) {
  const Projection& p = a.projection;
  const PackedLayer& layer = p.layer[0];
  unsigned char* const shared = device::shared_memory();
  float* const sums = reinterpret_cast<float*>(shared + kOuterBytes);
  const int units = (layer.tokens + kBlockTokens - 1) / kBlockTokens * p.tiles;
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int tile = unit % p.tiles, block = unit / p.tiles;
    const int left = (layer.tokens - block * kBlockTokens) * kTrainingImages;
    const int columns = left < kChunk ? (left + 15) / 16 * 16 : kChunk;
    for (int i = 0; i < kBlockTokens; ++i) sums[i * kTile + threadIdx.x] = 0;
    for (int slice = 0; slice < layer.slices; ++slice) {
      const auto start = [&](int group) {
        start_tokens(layer, p.shift, group, slice, block * kChunk, columns,
                     chunk_place(shared, group));
        device::commit_copies();
      };
      Products products;
      start_filters(layer, p.latent, tile, slice, shared);
      device::commit_copies();
      start(0);
      device::wait_for_copies<1>();
      __syncthreads();
      products.load_weight(shared);
      const int steps = steps_of_slice(layer.channels, slice, Products::kWidth, Products::kUnit);
      each_in_turn(p.groups, start, [&](int group) {
        sum_images(
            products, shared, chunk_place(shared, group), columns, steps, p.latent - tile * kTile,
            [&](int row, int lane) {
              return a.output(group * kTrainingImages + lane, tile * kTile + row);
            },
            [&](int token, int row, float sum) { sums[token * kTile + row] += sum; });
      });
    }
    const int k = tile * kTile + threadIdx.x;
    for (int i = 0; i < kBlockTokens && k < p.latent; ++i) {
      const int token = block * kBlockTokens + i;
      if (token >= layer.tokens) break;
      a.grad[static_cast<std::int64_t>(k) * layer.tokens + token] = sums[i * kTile + threadIdx.x];
    }
    __syncthreads();
  }
}

// Left factors of a block of tokens and a group of images: row v is this thread's latent.
template <Precision kPrecision>
__device__ void weigh_block(const ProjectionGradientArguments& a, int tile, int group, int block,
                            unsigned char* left) {
  const PackedLayer& layer = a.projection.layer[0];
  const int v = threadIdx.x;
  float grad[kTrainingImages];
#pragma unroll
  for (int i = 0; i < kTrainingImages; ++i) {
    grad[i] = a.output(group * kTrainingImages + i, tile * kTile + v);
  }
  for (int t = 0; t < kBlockTokens; ++t) {
    const float map = map_at<kPrecision>(layer, tile, block * kBlockTokens + t, v);
#pragma unroll
    for (int i = 0; i < kTrainingImages; ++i) {
      OuterProduct<kPrecision>::store(left, t * kTrainingImages + i, v, map * grad[i]);
    }
  }
}

// Pieces [pieces,K,C] of grad_filters: a tile of latents and a slice of channels each.
template <Precision kPrecision>
__global__ void __launch_bounds__(kThreads) differentiate_filters(ProjectionGradientArguments a) {
  const Projection& p = a.projection;
  const PackedLayer& layer = p.layer[0];
  unsigned char* const shared = device::shared_memory();
  const int blocks = (layer.tokens + kBlockTokens - 1) / kBlockTokens;
  const std::int64_t chunks = static_cast<std::int64_t>(blocks) * p.groups;
  for (int unit = blockIdx.x; unit < p.tiles * layer.slices * a.pieces; unit += gridDim.x) {
    const int tile = unit % p.tiles, slice = unit / p.tiles % layer.slices;
    const int piece = unit / p.tiles / layer.slices;
    const int begin = static_cast<int>(chunks * piece / a.pieces);
    const int end = static_cast<int>(chunks * (piece + 1) / a.pieces);
    const int first = slice * slice_channels(kPrecision);
    const auto start = [&](int turn) {
      start_tokens(layer, p.shift, (begin + turn) / blocks, slice, (begin + turn) % blocks * kChunk,
                   kChunk, chunk_place(shared, turn));
      device::commit_copies();
    };
    OuterProduct<kPrecision> product;
    start(0);
    each_in_turn(end - begin, start, [&](int turn) {
      weigh_block<kPrecision>(a, tile, (begin + turn) / blocks, (begin + turn) % blocks, shared);
      __syncthreads();
      product.add(shared, chunk_place(shared, turn), p.latent - tile * kTile,
                  layer.channels - first);
    });
    product.each([&](int row, int channel, float sum) {
      const int k = tile * kTile + row, c = first + channel;
      if (k >= p.latent || c >= layer.channels) return;
      const std::int64_t at = static_cast<std::int64_t>(piece) * p.latent + k;
      a.grad[at * layer.channels + c] = sum;
    });
  }
}

__global__ void add_filter_pieces(const float* __restrict__ from /* [pieces,count] */, int pieces,
                                  std::int64_t count, float* __restrict__ to /* [count] */) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int piece = 0; piece < pieces; ++piece) sum += from[piece * count + i];
  to[i] = sum;
}

// Left factors of kChunk latents from `first` on: row (token, image) of kTileTokens tokens.
template <Precision kPrecision>
__device__ void weigh_latents(const ProjectionGradientArguments& a, int first, int group,
                              int first_token, unsigned char* left) {
  const PackedLayer& layer = a.projection.layer[0];
  const int k = threadIdx.x % kChunk, half = threadIdx.x / kChunk;
  const int tile = (first + k) / kTile, v = (first + k) % kTile;
  float grad[kTrainingImages];
#pragma unroll
  for (int i = 0; i < kTrainingImages; ++i) {
    grad[i] = a.output(group * kTrainingImages + i, first + k);
  }
  for (int row = half * kTileTokens / 2; row < (half + 1) * kTileTokens / 2; ++row) {
    const float map = map_at<kPrecision>(layer, tile, first_token + row, v);
    float values[kTrainingImages];
#pragma unroll
    for (int i = 0; i < kTrainingImages; ++i) values[i] = map * grad[i];
    OuterProduct<kPrecision>::store_images(left, k, row * kTrainingImages, values);
  }
}

// grad_tokens [B,T,C]: kTileTokens tokens of a group of images and a slice of channels at a time.
template <Precision kPrecision>
__global__ void __launch_bounds__(kThreads)
    differentiate_projected_tokens(ProjectionGradientArguments a) {
  const Projection& p = a.projection;
  const PackedLayer& layer = p.layer[0];
  unsigned char* const shared = device::shared_memory();
  const int blocks = (layer.tokens + kTileTokens - 1) / kTileTokens;
  const int chunks = (p.latent + kChunk - 1) / kChunk;
  for (int unit = blockIdx.x; unit < blocks * p.groups * layer.slices; unit += gridDim.x) {
    const int slice = unit % layer.slices, group = unit / layer.slices % p.groups;
    const int first_token = unit / layer.slices / p.groups * kTileTokens;
    const int first = slice * slice_channels(kPrecision);
    const unsigned char* const filters =
        layer.filters + static_cast<std::int64_t>(slice) * (p.latent + 1) * kRowBytes;
    const auto start = [&](int turn) {
      copy_rows(chunk_place(shared, turn), filters, kChunk, [&](int r) -> std::int64_t {
        const int k = turn * kChunk + r;
        return k < p.latent ? k : p.latent;
      });
      device::commit_copies();
    };
    OuterProduct<kPrecision> product;
    start(0);
    each_in_turn(chunks, start, [&](int turn) {
      weigh_latents<kPrecision>(a, turn * kChunk, group, first_token, shared);
      __syncthreads();
      product.add(shared, chunk_place(shared, turn), (layer.tokens - first_token) * kTrainingImages,
                  layer.channels - first);
    });
    product.each([&](int row, int channel, float sum) {
      const int token = first_token + row / kTrainingImages, c = first + channel;
      const int image = group * kTrainingImages + row % kTrainingImages;
      if (token >= layer.tokens || c >= layer.channels || image >= p.images) return;
      const std::int64_t at = static_cast<std::int64_t>(image) * layer.tokens + token;
      a.grad[at * layer.channels + c] = sum;
    });
  }
}

}  // namespace brainfast::cuda
