// The vertex embedding on a CUDA device: memory, streams and bits as cuda_call.h says. float32 and
// bfloat16 only.
//
// The sum of a vertex and an image is made in one order, whatever else is computed beside it: a
// response has the same bits in any subset of vertices and in any batch.
#pragma once

#include <cstdint>

#include "../runtime/cpu_features.h"
#include "cuda_call.h"

namespace brainfast::cuda {

struct EmbedShape {
  std::int64_t vertices;  // V
  std::int64_t latent;    // K
};

struct EmbedWeight {
  const void* weight;  // [V,K]
  const float* bias;   // [V]
  Kind kind;           // of weight
};

struct EmbedBatch {
  std::int64_t images;  // B
  const void* latent;   // [B,K]
  Kind kind;
};

// Bytes of packed weights. A shape that is empty or too large throws std::invalid_argument.
std::int64_t embed_bytes(const EmbedShape& shape, Precision precision);

// Packs weight and bias for any number of calls of embed.
void pack_embed(const EmbedShape& shape, const EmbedWeight& weight, Precision precision,
                const Memory& packed, const Queue& queue);

// One launch, which reads the weights from memory once.
void embed(const EmbedShape& shape, Precision precision, const Memory& packed,
           const EmbedBatch& batch, float* response /* [B,V] */, const Queue& queue);

// Whether weights can be read where they are: rows of whole 16 bytes that hold what `precision`
// multiplies. embed_in_place is then as embed, without packing.
bool reads_in_place(const EmbedShape& shape, Precision precision, const EmbedWeight& weight);
void embed_in_place(const EmbedShape& shape, Precision precision, const EmbedWeight& weight,
                    const EmbedBatch& batch, float* response /* [B,V] */, const Queue& queue);

}  // namespace brainfast::cuda
