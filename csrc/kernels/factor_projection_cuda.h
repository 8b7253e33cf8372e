// The projection of one or more layers on a CUDA device, and their sum: memory, streams and bits as
// cuda_call.h says. float32 and bfloat16 only. [B,T,K] never exists: a product's tile meets its
// maps in registers.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../runtime/cpu_features.h"
#include "cuda_call.h"

namespace brainfast::cuda {

struct ProjectionLayerSizes {
  std::int64_t tokens;    // T_l, the class token included
  std::int64_t channels;  // C_l
};

struct ProjectionShape {
  std::int64_t latent;  // K
  std::vector<ProjectionLayerSizes> layers;
};

constexpr std::int64_t kMostProjectionLayers = 32;  // their table is an argument of the kernels

struct ProjectionFactors {
  std::vector<const void*> filters;  // [K,C_l] a layer
  std::vector<const void*> maps;     // [K,T_l] a layer
  const float* bias;                 // [K], or null for zeros
  Kind kind;                         // of filters and maps
};

// One layer's tokens where they lie; strides count numbers.
struct ProjectionTokens {
  const void* local;                   // [B,T_l,C_l], or [B,T_l-1,C_l] behind a class token
  std::array<std::int64_t, 3> stride;  // of an image, a token, a channel
  const void* global;                  // null, or the class token [B,C_l]: entry 0 of the maps
  std::array<std::int64_t, 2> global_stride;  // of an image, a channel
};

struct ProjectionBatch {
  std::int64_t images;                   // B
  std::vector<ProjectionTokens> layers;  // of every layer
  Kind kind;                             // of all tokens
};

// Null ones are not computed.
struct ProjectionDeviceGradients {
  float* tokens;   // [B,T,C]
  float* filters;  // [K,C]
  float* maps;     // [K,T]
};

// Sizes of the memory that the calls below take. One that is too large for 32-bit counters, or
// empty, throws std::invalid_argument.
std::int64_t factor_bytes(const ProjectionShape& shape, Precision precision);
std::int64_t projection_bytes(const ProjectionShape& shape, std::int64_t images,
                              Precision precision);
std::int64_t projection_gradient_bytes(const ProjectionShape& shape, std::int64_t images,
                                       Precision precision);

// Packs what belongs to all batches into `packed`.
void pack_factors(const ProjectionShape& shape, const ProjectionFactors& factors,
                  Precision precision, const Memory& packed, const Queue& queue);

// Two launches for all layers: tokens into `scratch` (projection_bytes), then the products, whose
// partial sums the last block to finish adds up in their order.
void project(const ProjectionShape& shape, Precision precision, const Memory& packed,
             const ProjectionBatch& batch, const Memory& scratch, float* latent /* [B,K] */,
             const Queue& queue);

// Gradients of project with one layer and no class token apart, in fp32 or bf16. In bf16 the
// products of grad_output with the maps are rounded too. `scratch` has projection_gradient_bytes.
void differentiate_projection(const ProjectionShape& shape, Precision precision,
                              const Memory& packed, const ProjectionBatch& batch,
                              const float* grad_output /* [B,K] */, const Memory& scratch,
                              const ProjectionDeviceGradients& gradients, const Queue& queue);

}  // namespace brainfast::cuda
