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
  // Packs the weights that the layout's view remembers. The layout must outlive this object.
  BFloatReadout(const ReadoutLayout<float>& layout, const BFloatKernels& kernels,
                Precision precision, ThreadPool& pool);

  void run(const ReadoutTokens<float>& tokens, Scratch& scratch, float* output,
           ThreadPool& pool) const;

  // Operands of one group's weights over D -> float32 rows [lanes, sorted_stride].
  void sort_weight(std::int64_t group, float* sorted) const;

  std::int64_t bytes() const;

 private:
  void pack_group(const float* weight, std::int64_t group);

  const ReadoutLayout<float>& layout_;
  const BFloatKernels& kernels_;
  BFloatView view_{};
  AlignedBuffer<std::uint16_t> weight_;
  AlignedBuffer<std::int32_t> place_;  // [V], of each vertex in sorted order
};

}  // namespace brainfast
