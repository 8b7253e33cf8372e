// Gradients of weights and of tokens. Sums over vertices are made in pieces, which are then added
// in their order: no atomic addition, the same bits on every run.
#pragma once

#include "factor_readout_loader.cuh"
#include "outer_product.cuh"

namespace brainfast::cuda {

constexpr int kLayerBlock = kTile / kTrainingImages;

struct WeightArguments {
  Vertices vertices;
  TokenRows tokens;          // kTrainingImages side by side
  const float* grad_output;  // [groups*kTrainingImages,V], sorted, over D
  float* grad_weight;        // [V,D]
};

// Left factors of a chunk of tokens: row v is this thread's vertex.
template <class Product>
__device__ void weigh_tokens(const WeightArguments& a, const Tile& tile, int group, int chunk,
                             unsigned char* left) {
  const Vertices& p = a.vertices;
  const int v = threadIdx.x;
  float grad[kTrainingImages];
#pragma unroll
  for (int i = 0; i < kTrainingImages; ++i) {
    const std::int64_t image = group * kTrainingImages + i;
    grad[i] = v < tile.count ? a.grad_output[image * p.vertices + tile.begin + v] : 0.0f;
  }
  for (int t = 0; t < kChunk / kTrainingImages; ++t) {
    const int term = chunk * (kChunk / kTrainingImages) + t;
    const float share =
        term < tile.terms && v < tile.count ? Term(p, tile, term).selector(v) : 0.0f;
#pragma unroll
    for (int i = 0; i < kTrainingImages; ++i) {
      Product::store(left, t * kTrainingImages + i, v, share * grad[i]);
    }
  }
}

// grad_weight of a tile and slice: over all tokens that its cell reads, and all images.
template <Precision kPrecision>
__global__ void __launch_bounds__(kThreads) differentiate_weight(WeightArguments a) {
  using Product = OuterProduct<kPrecision>;
  const Vertices& p = a.vertices;
  const TileLoader load(p, a.tokens);
  unsigned char* const left = load.weight();
  const int units = *p.tile_count * p.slices;
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Tile tile = load.begin(unit / p.slices);
    const int slice = unit % p.slices, first = slice * slice_channels(kPrecision);
    const int chunks = load.chunks(tile), turns = a.tokens.groups * chunks;
    Product product;
    const auto start = [&](int turn) {
      load.start_chunk(tile, turn / chunks, slice, turn % chunks, turn);
    };
    start(0);
    each_in_turn(turns, start, [&](int turn) {
      weigh_tokens<Product>(a, tile, turn / chunks, turn % chunks, left);
      __syncthreads();
      product.add(left, load.place(turn), tile.count, p.channels - first);
    });
    product.each([&](int v, int channel, float sum) {
      if (v >= tile.count || first + channel >= p.channels) return;
      const std::int64_t vertex = p.order[tile.begin + v];
      a.grad_weight[vertex * p.channels + first + channel] = sum;
    });
  }
}

// The pieces that the vertices of a pixel, or all of them for the global tokens, are cut into.
struct Pieces {
  int local, global;
};

struct TokenGradientArguments {
  Vertices vertices;
  Pieces pieces;
  int groups;                // of kTrainingImages images
  const float* grad_output;  // [groups*kTrainingImages,V], sorted, over D
  float* partial;            // [pixels*local+global,groups,L,kTrainingImages,D]
};

// The vertices that read a token, in chunks: of up to four cells, or of all.
struct Readers {
  int ranges;
  int begin[4], end[4], corner[4];
  int chunks[5];  // before each range

  __device__ void fill(const Vertices& p, int pixel) {
    ranges = pixel == p.pixels() ? 1 : 4;
    chunks[0] = 0;
    for (int r = 0; r < ranges; ++r) {
      const int row = pixel / p.width + 1 - r / 2, column = pixel % p.width + 1 - r % 2;
      const int cell = row * (p.width + 1) + column;
      corner[r] = ranges == 1 ? 4 : r;
      begin[r] = ranges == 1 ? 0 : p.cell_begin[cell];
      end[r] = ranges == 1 ? p.vertices : p.cell_begin[cell + 1];
      chunks[r + 1] = chunks[r] + (end[r] - begin[r] + kChunk - 1) / kChunk;
    }
  }
};
constexpr int kTokenGradientBytes = kSlotsAt + 128;
static_assert(sizeof(Readers) <= 128);

// Vertices of one chunk.
struct ReaderChunk {
  int begin, count, corner;
};

__device__ inline ReaderChunk reader_chunk(const Readers& readers, int index) {
  int r = 0;
  while (index >= readers.chunks[r + 1]) ++r;
  const int begin = readers.begin[r] + (index - readers.chunks[r]) * kChunk;
  const int left = readers.end[r] - begin;
  return {begin, left < kChunk ? left : kChunk, readers.corner[r]};
}

// Left factors of a chunk of vertices: row (layer, image) of kLayerBlock layers from `first` on.
template <class Product>
__device__ void weigh_vertices(const TokenGradientArguments& a, const ReaderChunk& chunk, int group,
                               int first, unsigned char* left) {
  const Vertices& p = a.vertices;
  const int k = threadIdx.x % kChunk, half = threadIdx.x / kChunk;
  const bool real = k < chunk.count;
  const std::int64_t place = chunk.begin + k;
  float grad[kTrainingImages];
#pragma unroll
  for (int i = 0; i < kTrainingImages; ++i) {
    const std::int64_t image = group * kTrainingImages + i;
    grad[i] = real ? a.grad_output[image * p.vertices + place] *
                         p.coefficient[chunk.corner * p.vertices + place]
                   : 0.0f;
  }
  for (int row = half * kLayerBlock / 2; row < (half + 1) * kLayerBlock / 2; ++row) {
    const int layer = first + row;
    const float share = real && layer < p.layers
                            ? p.layer[static_cast<std::int64_t>(layer) * p.vertices + place]
                            : 0.0f;
    float values[kTrainingImages];
#pragma unroll
    for (int i = 0; i < kTrainingImages; ++i) values[i] = share * grad[i];
    Product::store_images(left, k, row * kTrainingImages, values);
  }
}

// Starts copying the weights of a chunk's vertices.
__device__ inline void start_readers(const Vertices& p, const ReaderChunk& chunk, int slice,
                                     unsigned char* to) {
  const unsigned char* const rows =
      p.weight + static_cast<std::int64_t>(slice) * (p.vertices + 1) * kRowBytes;
  copy_rows(to, rows, kChunk,
            [&](int r) -> std::int64_t { return r < chunk.count ? chunk.begin + r : p.vertices; });
  device::commit_copies();
}

// A piece of the gradient of one token (of a pixel, or the global ones), for a group of images, a
// block of layers and a slice of channels.
template <Precision kPrecision>
__global__ void __launch_bounds__(kThreads) differentiate_tokens(TokenGradientArguments a) {
  using Product = OuterProduct<kPrecision>;
  const Vertices& p = a.vertices;
  unsigned char* const shared = device::shared_memory();
  auto* const readers = reinterpret_cast<Readers*>(shared + kSlotsAt);
  const int blocks = (p.layers + kLayerBlock - 1) / kLayerBlock;
  const int local = p.pixels() * a.pieces.local, tokens = local + a.pieces.global;
  const std::int64_t units = static_cast<std::int64_t>(tokens) * a.groups * blocks * p.slices;
  for (std::int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int slice = static_cast<int>(unit % p.slices);
    const int block = static_cast<int>(unit / p.slices % blocks);
    const int group = static_cast<int>(unit / p.slices / blocks % a.groups);
    const int token = static_cast<int>(unit / p.slices / blocks / a.groups);
    const bool whole = token >= local;
    const int pieces = whole ? a.pieces.global : a.pieces.local;
    const int piece = whole ? token - local : token % pieces;
    __syncthreads();
    if (threadIdx.x == 0) readers->fill(p, whole ? p.pixels() : token / pieces);
    __syncthreads();
    const std::int64_t chunks = readers->chunks[readers->ranges];
    const int begin = static_cast<int>(chunks * piece / pieces);
    const int end = static_cast<int>(chunks * (piece + 1) / pieces);
    const int first_layer = block * kLayerBlock, first = slice * slice_channels(kPrecision);
    const int rows = (p.layers - first_layer) * kTrainingImages;
    Product product;
    const auto place = [&](int turn) { return shared + kChunksAt + turn % 2 * kChunkBytes; };
    const auto start = [&](int turn) {
      start_readers(p, reader_chunk(*readers, begin + turn), slice, place(turn));
    };
    if (begin < end) start(0);
    each_in_turn(end - begin, start, [&](int turn) {
      weigh_vertices<Product>(a, reader_chunk(*readers, begin + turn), group, first_layer, shared);
      __syncthreads();
      product.add(shared, place(turn), rows, p.channels - first);
    });
    float* const to =
        a.partial +
        ((static_cast<std::int64_t>(token) * a.groups + group) * p.layers + first_layer) *
            kTrainingImages * p.channels;
    product.each([&](int row, int channel, float sum) {
      if (row >= rows || first + channel >= p.channels) return;
      to[static_cast<std::int64_t>(row) * p.channels + first + channel] = sum;
    });
  }
}

// Adds up the pieces of one token, a block each.
__global__ void add_pieces(TokenGradientArguments a,
                           float* __restrict__ grad_local /* [B,L,D,H,W] */,
                           float* __restrict__ grad_global /* [B,L,D] */) {
  const Vertices& p = a.vertices;
  const int pixels = p.pixels();
  const int pixel = static_cast<int>(blockIdx.x) % (pixels + 1);
  const int rest = static_cast<int>(blockIdx.x) / (pixels + 1);
  const int layer = rest % p.layers, image = rest / p.layers;
  const bool whole = pixel == pixels;
  float* const to = whole ? grad_global : grad_local;
  if (!to) return;
  const int group = image / kTrainingImages, lane = image % kTrainingImages;
  const int pieces = whole ? a.pieces.global : a.pieces.local;
  const std::int64_t row =
      (static_cast<std::int64_t>(group) * p.layers + layer) * kTrainingImages + lane;
  const std::int64_t stride =
      static_cast<std::int64_t>(a.groups) * p.layers * kTrainingImages * p.channels;
  const float* const from =
      a.partial + row * p.channels + static_cast<std::int64_t>(pixel) * a.pieces.local * stride;
  const std::int64_t token = (static_cast<std::int64_t>(image) * p.layers + layer) * p.channels;
  for (int channel = threadIdx.x; channel < p.channels; channel += blockDim.x) {
    float sum = 0;
    for (int piece = 0; piece < pieces; ++piece) sum += from[piece * stride + channel];
    to[whole ? token + channel : (token + channel) * pixels + pixel] = sum;
  }
}

}  // namespace brainfast::cuda
