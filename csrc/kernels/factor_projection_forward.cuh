// The latent: dots of filters with tokens, weighed by the maps in registers and summed over tokens.
// A unit of work is a tile of latents with a slice of one layer's channels, a part of its tokens
// and some groups of images. Its sums are a piece of the answer; whoever finishes the last piece of
// a tile adds them up, always in the same order.
#pragma once

#include "factor_projection_device.cuh"

namespace brainfast::cuda {

constexpr int kProjectionChunksAt = kTile * kRowBytes;
constexpr int kProjectionFlagAt = kProjectionChunksAt + 2 * kChunkBytes;
constexpr int kProjectionBytes = kProjectionFlagAt + 16;

// As many columns at a time as leave room for two sets of their maps where the filters were.
__host__ __device__ constexpr int projection_columns(Precision precision) {
  return precision == Precision::bf16x3 ? kChunk / 2 : kChunk;
}
static_assert(2 * kChunk / 2 * kTile * 4 <= kTile * kRowBytes);

// One unit of work, and the chunks of its part in each of its groups of images.
struct ProjectionUnit {
  int tile, slice, piece, group_unit, layer;
  int first_group, groups, first_chunk, chunks;

  template <Precision kPrecision>
  __device__ static ProjectionUnit at(const Projection& p, int index) {
    ProjectionUnit u;
    u.tile = index % p.tiles;
    u.piece = index / p.tiles % p.pieces;
    u.group_unit = index / p.tiles / p.pieces;
    u.layer = 0;
    while (u.layer + 1 < p.layers && u.piece >= p.layer[u.layer + 1].first_piece) ++u.layer;
    const PackedLayer& layer = p.layer[u.layer];
    u.slice = (u.piece - layer.first_piece) / layer.parts;
    u.first_chunk = (u.piece - layer.first_piece) % layer.parts * layer.part_chunks;
    const int columns = projection_columns(kPrecision);
    const int all = ((layer.tokens << p.shift) + columns - 1) / columns, left = all - u.first_chunk;
    u.chunks = left < layer.part_chunks ? left : layer.part_chunks;
    u.first_group = u.group_unit * p.unit_groups;
    const int groups = p.groups - u.first_group;
    u.groups = groups < p.unit_groups ? groups : p.unit_groups;
    return u;
  }

  // Of the chunk that comes at `turn`.
  __device__ int group(int turn) const { return first_group + turn / chunks; }
  __device__ int chunk(int turn) const { return first_chunk + turn % chunks; }
  __device__ bool ends_group(int turn) const { return turn % chunks == chunks - 1; }

  // Where the sum of a row and an image of `group` goes.
  __device__ float* sum(const Projection& p, int group, int row, int image) const {
    const std::int64_t images = static_cast<std::int64_t>(p.groups) << p.shift;
    const std::int64_t at = piece * images + (group << p.shift) + image;
    return p.partial + (at * p.tiles + tile) * kTile + row;
  }
};

// Columns of a chunk, rounded up to 16.
__device__ inline int chunk_columns(const PackedLayer& layer, int shift, int chunk, int most) {
  const int left = (layer.tokens << shift) - chunk * most;
  return left < most ? (left + 15) / 16 * 16 : most;
}

// The four maps of a thread of TensorTile at a token.
template <Precision kPrecision>
__device__ inline float4 four_maps(const unsigned char* maps) {
  if constexpr (kPrecision == Precision::bf16) {
    const uint2 pairs = *reinterpret_cast<const uint2*>(maps);
    return {device::from_bfloat(static_cast<unsigned short>(pairs.x)),
            device::from_bfloat(static_cast<unsigned short>(pairs.x >> 16)),
            device::from_bfloat(static_cast<unsigned short>(pairs.y)),
            device::from_bfloat(static_cast<unsigned short>(pairs.y >> 16))};
  } else {
    return *reinterpret_cast<const float4*>(maps);
  }
}

// The sums of one unit, on tensor cores. Once the filters are in registers, maps lie in their
// place.
template <Precision kPrecision>
__device__ void project_unit(const Projection& p, const ProjectionUnit& u, unsigned char* shared,
                             TensorTile<kPrecision>& products) {
  constexpr int kColumns = projection_columns(kPrecision), kSize = map_size(kPrecision);
  const PackedLayer& layer = p.layer[u.layer];
  const auto place = [&](int turn) {
    return shared + kProjectionChunksAt + turn % 2 * kChunkBytes;
  };
  const auto maps = [&](int turn) { return shared + turn % 2 * (kColumns * kTile * kSize); };
  const auto columns_at = [&](int turn) {
    return chunk_columns(layer, p.shift, u.chunk(turn), kColumns);
  };
  const auto start_chunk = [&](int turn) {
    start_tokens(layer, p.shift, u.group(turn), u.slice, u.chunk(turn) * kColumns, columns_at(turn),
                 place(turn));
  };
  const auto start_maps = [&](int turn) {
    const std::int64_t token = (u.chunk(turn) * kColumns) >> p.shift;
    const unsigned char* const from =
        layer.maps +
        (static_cast<std::int64_t>(u.tile) * layer.padded_tokens + token) * (kTile * kSize);
    const int bytes = (columns_at(turn) >> p.shift) * (kTile * kSize);
    for (int at = threadIdx.x * 16; at < bytes; at += kThreads * 16) {
      device::copy_async(maps(turn) + at, from + at);
    }
  };
  start_filters(layer, p.latent, u.tile, u.slice, shared);
  device::commit_copies();
  start_chunk(0);
  device::commit_copies();
  device::wait_for_copies<1>();
  __syncthreads();
  products.load_weight(shared);
  __syncthreads();
  start_maps(0);
  device::commit_copies();
  const int steps =
      steps_of_slice(layer.channels, u.slice, slice_channels(kPrecision), products.kUnit);
  const int own = side_by_side(products.vertex(0)) * kSize;
  float y[TensorTile<kPrecision>::kRows][2] = {};
  each_in_turn(
      u.groups * u.chunks,
      [&](int turn) {
        start_chunk(turn);
        start_maps(turn);
        device::commit_copies();
      },
      [&](int turn) {
        const unsigned char* const weights = maps(turn) + own;
        products.multiply(place(turn), columns_at(turn), steps, p.latent - u.tile * kTile,
                          [&](int column, const float (&sums)[TensorTile<kPrecision>::kRows][2]) {
#pragma unroll
                            for (int side = 0; side < 2; ++side) {
                              const int token = (column + products.column() + side) >> p.shift;
                              const float4 map =
                                  four_maps<kPrecision>(weights + token * (kTile * kSize));
                              y[0][side] += sums[0][side] * map.x;
                              y[1][side] += sums[1][side] * map.y;
                              y[2][side] += sums[2][side] * map.z;
                              y[3][side] += sums[3][side] * map.w;
                            }
                          });
        if (!u.ends_group(turn)) return;
        products.each_image(y, p.shift, [&](int row, int image, float sum) {
          *u.sum(p, u.group(turn), row, image) = sum;
        });
#pragma unroll
        for (auto& row : y) row[0] = row[1] = 0;
      });
}

// The same in strict float32: filters stay in shared memory.
template <Precision kPrecision>
__device__ void project_unit(const Projection& p, const ProjectionUnit& u, unsigned char* shared,
                             ScalarTile& products) {
  using ShortTile = ScalarProducts<ScalarTile::kRows, 2>;
  const PackedLayer& layer = p.layer[u.layer];
  const auto columns_at = [&](int turn) {
    return chunk_columns(layer, p.shift, u.chunk(turn), kChunk);
  };
  const auto place = [&](int turn) {
    return shared + kProjectionChunksAt + turn % 2 * kChunkBytes;
  };
  const auto start = [&](int turn) {
    start_tokens(layer, p.shift, u.group(turn), u.slice, u.chunk(turn) * kChunk, columns_at(turn),
                 place(turn));
    device::commit_copies();
  };
  start_filters(layer, p.latent, u.tile, u.slice, shared);
  start(0);
  const int steps = steps_of_slice(layer.channels, u.slice, ScalarTile::kWidth, ScalarTile::kUnit);
  const float* const maps = reinterpret_cast<const float*>(layer.maps) +
                            static_cast<std::int64_t>(u.tile) * layer.padded_tokens * kTile;
  float y[ScalarTile::kRows] = {};
  each_in_turn(u.groups * u.chunks, start, [&](int turn) {
    const int first = u.chunk(turn) * kChunk + products.column();
    const auto weigh = [&](const auto& sums) {
      constexpr int kColumns = sizeof(sums[0]) / sizeof(float);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const std::int64_t token = (first + 8 * j) >> p.shift;
        if (token >= layer.tokens) continue;
#pragma unroll
        for (int r = 0; r < ScalarTile::kRows; ++r) {
          y[r] += sums[r][j] * maps[token * kTile + products.vertex(r)];
        }
      }
    };
    // A class token makes a short last chunk the common case.
    if (columns_at(turn) <= 8 * ShortTile::kColumns) {
      ShortTile().multiply(shared, place(turn), steps, weigh);
    } else {
      products.multiply(shared, place(turn), steps, weigh);
    }
    if (!u.ends_group(turn)) return;
    products.each_image(y, p.shift, [&](int row, int image, float sum) {
      *u.sum(p, u.group(turn), row, image) = sum;
    });
#pragma unroll
    for (float& sum : y) sum = 0;
  });
}

// Adds up the pieces of a tile and some groups of images, if this block has finished the last one.
__device__ inline void add_pieces_if_last(const Projection& p, const ProjectionUnit& u,
                                          unsigned char* shared) {
  int* const last = reinterpret_cast<int*>(shared + kProjectionFlagAt);
  __threadfence();  // this thread's sums are there for all before the block is counted
  __syncthreads();
  if (threadIdx.x == 0) {
    *last = atomicAdd(p.counters + u.group_unit * p.tiles + u.tile, 1) == p.pieces - 1;
  }
  __syncthreads();
  const int k = u.tile * kTile + threadIdx.x;
  if (!*last || k >= p.latent) return;
  __threadfence();
  const std::int64_t images = static_cast<std::int64_t>(p.groups) << p.shift;
  const std::int64_t stride = images * p.tiles * kTile;
  const int end = (u.first_group + u.groups) << p.shift;
  for (int image = u.first_group << p.shift; image < end && image < p.images; ++image) {
    const float* const from =
        p.partial + (static_cast<std::int64_t>(image) * p.tiles + u.tile) * kTile + threadIdx.x;
    float sum = 0;
#pragma unroll 8
    for (int piece = 0; piece < p.pieces; ++piece) sum += __ldcg(from + piece * stride);
    p.latents[static_cast<std::int64_t>(image) * p.latent + k] = p.bias[k] + sum;
  }
}

template <Precision kPrecision, class Products>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) project_tokens(Projection p) {
  unsigned char* const shared = device::shared_memory();
  const int units = p.tiles * p.pieces * p.group_units;
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    const ProjectionUnit unit = ProjectionUnit::at<kPrecision>(p, index);
    Products products;
    project_unit<kPrecision>(p, unit, shared, products);
    add_pieces_if_last(p, unit, shared);
  }
}

}  // namespace brainfast::cuda
