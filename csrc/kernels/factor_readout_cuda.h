// The readout on a CUDA device: memory, streams and bits as cuda_call.h says. float32 and bfloat16
// only.
#pragma once

#include <cstdint>

#include "../runtime/cpu_features.h"
#include "cuda_call.h"
#include "factor_readout.h"

namespace brainfast::cuda {

struct Parameters {
  const float* space;  // [V,2]
  const float* layer;  // [V,L]
  const float* scale;  // [V]
  const void* weight;  // [V,D]
  const float* bias;   // [V]
  Kind weight_kind;
};

struct Tokens {
  std::int64_t images;  // B
  const void* local;    // [B,L,D,H,W]
  const void* global;   // [B,L,D]
  Kind kind;            // of both
};

// Sizes of the memory that the calls below take. One that is too large for 32-bit counters, or
// empty, throws std::invalid_argument.
std::int64_t parameter_bytes(const ReadoutShape& shape, Precision precision);
std::int64_t token_bytes(const ReadoutShape& shape, std::int64_t images, Precision precision);
std::int64_t gradient_bytes(const ReadoutShape& shape, std::int64_t images, Precision precision);

// Sorts the vertices by cell and packs what belongs to them into `packed`. A sampling point that
// is not finite makes its vertex answer NaN: to refuse it, the host would have to wait.
void pack_parameters(const ReadoutShape& shape, const Parameters& parameters, Precision precision,
                     const Memory& packed, const Queue& queue);

// Two launches: tokens into `scratch` (token_bytes), then the readout.
void forward(const ReadoutShape& shape, Precision precision, const Memory& packed,
             const Tokens& tokens, const Memory& scratch, float* output /* [B,V] */,
             const Queue& queue);

// Gradients of forward with the same parameters and tokens, in fp32 or bf16; null ones are not
// computed. In bf16 the gradient of y times a vertex's coefficients is rounded too. `scratch` has
// gradient_bytes.
void backward(const ReadoutShape& shape, Precision precision, const Memory& packed,
              const Tokens& tokens, const float* grad_output /* [B,V] */, const Memory& scratch,
              const ReadoutGradients<float>& gradients, const Queue& queue);

}  // namespace brainfast::cuda
