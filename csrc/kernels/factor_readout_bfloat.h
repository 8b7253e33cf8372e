// The readout with bfloat16 operands, packed once for dot products or tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "../runtime/aligned_buffer.h"
#include "../runtime/cpu_features.h"
#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "factor_readout.h"
#include "factor_readout_bfloat_kernels.h"
#include "factor_readout_layout.h"

namespace brainfast {

// Null where `isa` multiplies float32 operands.
const BFloatKernels* bfloat_kernels_of(Isa isa);

class BFloatReadout {
 public:
  // The layout must outlive this object.
  BFloatReadout(const ReadoutLayout<float>& layout, const BFloatKernels& kernels,
                Precision precision);

  // Packs the weights that the layout's view remembers.
  void update(ThreadPool& pool);

  std::int64_t image_stride() const { return view_.image_stride; }  // of packed tokens
  void pack_tokens(const ReadoutTokens<float>& tokens, std::uint16_t* packed,
                   ThreadPool& pool) const;
  void run(std::int64_t images, const std::uint16_t* packed, Scratch& scratch, float* output,
           ThreadPool& pool) const;

  // Gradients of the images whose packed tokens these are; that of the bias is not among them.
  void backward(std::int64_t images, const std::uint16_t* packed, const float* grad_output,
                const ReadoutGradients<float>& gradients, Scratch& scratch, ThreadPool& pool) const;

  // Operands of the weights over D as float32 rows [G*lanes, sorted_stride], in the scratch.
  const float* sorted_weight(Scratch& scratch, ThreadPool& pool) const;

  std::int64_t bytes() const;

 private:
  void sort_weight(std::int64_t group, float* sorted) const;
  void vertex_gradients(std::int64_t images, const std::uint16_t* packed, const float* grad_output,
                        const ReadoutGradients<float>& gradients, Scratch& scratch,
                        ThreadPool& pool) const;
  void token_gradients(std::int64_t images, const float* grad_output,
                       const ReadoutGradients<float>& gradients, Scratch& scratch,
                       ThreadPool& pool) const;

  const ReadoutLayout<float>& layout_;
  const BFloatKernels& kernels_;
  BFloatView view_{};
  AlignedBuffer<std::uint16_t> weight_;
  AlignedBuffer<std::int32_t> place_;  // [V], of each vertex in sorted order
};

}  // namespace brainfast
