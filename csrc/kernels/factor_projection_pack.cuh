// Brings filters, maps and tokens into the form that the products read.
#pragma once

#include "factor_projection_device.cuh"

namespace brainfast::cuda {

// A thread for every piece of every row of one layer's filters.
__global__ void pack_filters(PackedLayer layer, int latent,
                             const void* __restrict__ filters /* [K,C] */, Kind kind,
                             Precision precision) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int piece = static_cast<int>(index % kRowPieces);
  const std::int64_t row = index / kRowPieces;
  if (row >= static_cast<std::int64_t>(layer.slices) * (latent + 1)) return;
  const std::int64_t k = row % (latent + 1);
  const int first = static_cast<int>(row / (latent + 1)) * slice_channels(precision);
  *reinterpret_cast<uint4*>(layer.filters + row * kRowBytes + piece * 16) =
      pack_piece(piece, precision, [&](int channel) {
        const int c = first + channel;
        return k < latent && c < layer.channels ? load_number(filters, k * layer.channels + c, kind)
                                                : 0.0f;
      });
}

// A block for each token of each tile, kTile threads.
__global__ void pack_maps(PackedLayer layer, int latent, const void* __restrict__ maps /* [K,T] */,
                          Kind kind, Precision precision) {
  const int token = static_cast<int>(blockIdx.x) % layer.padded_tokens, v = threadIdx.x;
  const std::int64_t k = static_cast<int>(blockIdx.x) / layer.padded_tokens * kTile + v;
  const float map =
      k < latent && token < layer.tokens ? load_number(maps, k * layer.tokens + token, kind) : 0.0f;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kTile + map_place(precision, v);
  if (map_size(precision) == 2) {
    reinterpret_cast<unsigned short*>(layer.maps)[at] = device::to_bfloat(map);
  } else {
    reinterpret_cast<float*>(layer.maps)[at] = map;
  }
}

__global__ void pack_bias(const float* __restrict__ bias /* [K], or null */,
                          float* __restrict__ to /* [K] */, int latent) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k < latent) to[k] = bias ? bias[k] : 0.0f;
}

// Where one layer's tokens are and where they go; strides count numbers.
struct TokenSource {
  int tokens, channels, slices;
  int first_block;  // of this layer
  const void* local;
  std::int64_t image, token, channel;
  const void* global;  // or null
  std::int64_t global_image, global_channel;
  unsigned char* rows;
  std::int64_t row_count;
};

struct PackArguments {
  int layers, images, groups, shift;
  Kind kind;
  int* counters;  // to be zero, or null
  int counter_count;
  TokenSource layer[kMostProjectionLayers];
};
static_assert(sizeof(PackArguments) <= kMostArgumentBytes);

// A block for two neighbouring pieces of the rows of a layer and image, in a slice: threads side by
// side read neighbouring tokens, and each fills a sector of memory.
template <Precision kPrecision>
__global__ void __launch_bounds__(kThreads) pack_projection_tokens(PackArguments a) {
  const int block = blockIdx.x;
  if (block == 0) {
    for (int i = threadIdx.x; i < a.counter_count; i += kThreads) a.counters[i] = 0;
  }
  int index = 0;
  while (index + 1 < a.layers && block >= a.layer[index + 1].first_block) ++index;
  const TokenSource& from = a.layer[index];
  const int pair = (block - from.first_block) % kRowPairs;
  const int rest = (block - from.first_block) / kRowPairs;
  const int slice = rest % from.slices, image = rest / from.slices;
  const int first = slice * slice_channels(kPrecision), apart = from.global ? 1 : 0;
  // One past the tokens is the zero row.
  const int last = image == 0 ? from.tokens : from.tokens - 1;
  const std::int64_t group = image >> a.shift;
  for (int token = threadIdx.x; token <= last; token += kThreads) {
    const bool real = image < a.images && token < from.tokens, whole = token < apart;
    const void* const numbers = whole ? from.global : from.local;
    const std::int64_t start =
        whole ? image * from.global_image : image * from.image + (token - apart) * from.token;
    const std::int64_t step = whole ? from.global_channel : from.channel;
    const std::int64_t row = token == from.tokens ? from.row_count - 1
                                                  : ((group * from.tokens + token) << a.shift) +
                                                        (image & ((1 << a.shift) - 1));
    unsigned char* const to = from.rows + (slice * from.row_count + row) * kRowBytes;
    for (int piece = 2 * pair; piece < 2 * pair + 2; ++piece) {
      *reinterpret_cast<uint4*>(to + piece * 16) = pack_piece(piece, kPrecision, [&](int channel) {
        const int c = first + channel;
        return real && c < from.channels ? load_number(numbers, start + c * step, a.kind) : 0.0f;
      });
    }
  }
}

}  // namespace brainfast::cuda
