// Responses of a tile of vertices for some images: slices of weights come to shared memory one
// after another, straight from where they lie, and meet the same slices of the latents there.
#pragma once

#include "row_products.cuh"
#include "vertex_embed_cuda.h"

namespace brainfast::cuda {

constexpr int kEmbedTile = kChunk;                    // vertices
constexpr int kFewImages = 16, kManyImages = kChunk;  // of one pass

// Shared memory: two turns of weights and latents.
template <int kImages>
constexpr int kEmbedTurn = (kEmbedTile + kImages) * kRowBytes;

struct EmbedArguments {
  int vertices, latent, images, slices;
  std::int64_t pitch;           // bytes from a vertex to the next
  int row_bytes;                // that a row has; what is past them counts as zero
  const unsigned char* weight;  // [V] rows, without the padding of packed_rows.cuh
  const float* bias;            // [V]
  const void* latents;          // [B,K]
  Kind kind;                    // of the latents
  float* response;              // [B,V]
};

// Packed weights: a thread for every 16 bytes.
__global__ void pack_embed_weight(EmbedArguments a, const void* __restrict__ weight /* [V,K] */,
                                  Kind kind, Precision precision, unsigned char* __restrict__ to) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int pieces = a.slices * kRowPieces;
  const std::int64_t v = index / pieces;
  if (v >= a.vertices) return;
  const int piece = static_cast<int>(index % pieces);
  const int first = piece / kRowPieces * slice_channels(precision);
  *reinterpret_cast<uint4*>(to + index * 16) =
      pack_piece(piece % kRowPieces, precision, [&](int channel) {
        const int k = first + channel;
        return k < a.latent ? load_number(weight, v * a.latent + k, kind) : 0.0f;
      });
}

__global__ void copy_embed_bias(const float* __restrict__ from, float* __restrict__ to, int count) {
  const int v = blockIdx.x * blockDim.x + threadIdx.x;
  if (v < count) to[v] = from[v];
}

// Starts copying a slice of a tile's weights. Rows past the last vertex repeat it.
__device__ inline void start_weights(const EmbedArguments& a, int first_vertex, int slice,
                                     unsigned char* to) {
  const int quarter = threadIdx.x % 4;
  for (int r = threadIdx.x / 4; r < kEmbedTile; r += kThreads / 4) {
    const int v = first_vertex + r;
    const unsigned char* const row = a.weight + (v < a.vertices ? v : a.vertices - 1) * a.pitch;
    for (int part = quarter; part < kRowPieces; part += 4) {
      const int at = slice * kRowData + part * 16;
      const bool real = at < a.row_bytes;
      device::copy_async_or_zero(to + r * kRowBytes + part * 16, row + (real ? at : 0), real);
    }
  }
}

// A slice of the latents of `count` images from `first` on, two numbers at a time, so that threads
// side by side read neighbours; images past the last are zero.
template <Precision kPrecision>
__device__ void load_latents(const EmbedArguments& a, int first, int count, int slice,
                             unsigned char* to) {
  constexpr int kWidth = slice_channels(kPrecision), kPairs = kWidth / 2;
  for (int i = threadIdx.x; i < count * kPairs; i += kThreads) {
    const int row = i / kPairs, pair = i % kPairs;
    const std::int64_t image = first + row;
    const auto number = [&](int channel) {
      const int k = slice * kWidth + channel;
      return image < a.images && k < a.latent ? load_number(a.latents, image * a.latent + k, a.kind)
                                              : 0.0f;
    };
    const float one = number(2 * pair), two = number(2 * pair + 1);
    unsigned* const at = reinterpret_cast<unsigned*>(to + row * kRowBytes);
    if constexpr (kPrecision == Precision::fp32) {
      at[2 * pair] = bits_of(one);
      at[2 * pair + 1] = bits_of(two);
    } else {
      at[pair] = pack_pair(one, two, false);
      if constexpr (kPrecision == Precision::bf16x3) at[kPairs + pair] = pack_pair(one, two, true);
    }
  }
}

// The sums of a tile and a pass of images, as a thread of each kind of product has them.
template <Precision kPrecision, int kImages>
class EmbedTile {
 public:
  __device__ void load_weight(const unsigned char* weight) { products_.load_weight(weight); }

  __device__ void add(const unsigned char*, const unsigned char* rows, int columns, int steps) {
    products_.template accumulate<kImages>(rows, columns, steps, sums_);
  }

  // Calls use(vertex of the tile, image of the pass, sum).
  template <class Use>
  __device__ void each(Use&& use) const {
#pragma unroll
    for (int part = 0; part < kImages / 8; ++part) {
#pragma unroll
      for (int i = 0; i < 2 * Products::kRows; ++i) {
        use(products_.vertex(i / 2), part * 8 + products_.column() + i % 2,
            sums_[part][i / 2][i % 2]);
      }
    }
  }

  using Products = TensorTile<kPrecision, 1>;

 private:
  Products products_;
  float sums_[kImages / 8][Products::kRows][2] = {};
};

template <int kImages>
class EmbedTile<Precision::fp32, kImages> {
 public:
  using Products = ScalarProducts<kEmbedTile / 16, kImages / 8>;

  __device__ void load_weight(const unsigned char*) {}

  __device__ void add(const unsigned char* weight, const unsigned char* rows, int, int steps) {
    products_.multiply(weight, rows, steps,
                       [&](const float (&found)[Products::kRows][Products::kColumns]) {
#pragma unroll
                         for (int r = 0; r < Products::kRows; ++r) {
#pragma unroll
                           for (int j = 0; j < Products::kColumns; ++j) sums_[r][j] += found[r][j];
                         }
                       });
  }

  template <class Use>
  __device__ void each(Use&& use) const {
#pragma unroll
    for (int r = 0; r < Products::kRows; ++r) {
#pragma unroll
      for (int j = 0; j < Products::kColumns; ++j) {
        use(products_.vertex(r), products_.column() + 8 * j, sums_[r][j]);
      }
    }
  }

 private:
  Products products_;
  float sums_[Products::kRows][Products::kColumns] = {};
};

// Blocks stay and take one tile after another, all passes of images of a tile while its weights are
// in the cache.
template <Precision kPrecision, int kImages>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) embed_vertices(EmbedArguments a) {
  using Tile = EmbedTile<kPrecision, kImages>;
  unsigned char* const shared = device::shared_memory();
  const int passes = (a.images + kImages - 1) / kImages;
  const int units = (a.vertices + kEmbedTile - 1) / kEmbedTile * passes;
  const auto place = [&](int turn) { return shared + turn % 2 * kEmbedTurn<kImages>; };
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int first_vertex = unit / passes * kEmbedTile, first_image = unit % passes * kImages;
    const int left = a.images - first_image;
    const int columns = left < kImages ? (left + 15) / 16 * 16 : kImages;
    const auto start = [&](int slice) {
      start_weights(a, first_vertex, slice, place(slice));
      device::commit_copies();
      load_latents<kPrecision>(a, first_image, columns, slice,
                               place(slice) + kEmbedTile * kRowBytes);
    };
    Tile tile;
    start(0);
    each_in_turn(a.slices, start, [&](int slice) {
      tile.load_weight(place(slice));
      tile.add(place(slice), place(slice) + kEmbedTile * kRowBytes, columns,
               steps_of_slice(a.latent, slice, Tile::Products::kWidth, Tile::Products::kUnit));
    });
    tile.each([&](int vertex, int image, float sum) {
      const int v = first_vertex + vertex, i = first_image + image;
      if (v >= a.vertices || i >= a.images) return;
      a.response[static_cast<std::int64_t>(i) * a.vertices + v] = sum + a.bias[v];
    });
  }
}

}  // namespace brainfast::cuda
