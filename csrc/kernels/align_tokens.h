// Raw trunk tokens -> tokens in the channel space that all layers share:
// local_l = bottleneck_local_l . resample(x_l) + offset_local_l, global_l = bottleneck_global_l .
// g_l
// + offset_global_l. The resampling is bilinear with align_corners=False and no antialias; a grid
// that is the target already passes through.
#pragma once

#include <cstdint>
#include <memory>

#include "../runtime/cpu_features.h"

namespace brainfast {

struct AlignShape {
  std::int64_t layers = 0;                  // L
  std::int64_t channels = 0;                // D
  std::int64_t height = 0;                  // H, of the target grid
  std::int64_t width = 0;                   // W
  bool pool_space = false;                  // answer the mean over the target grid, [B,L,D,1,1]
  const std::int64_t* trunk_channels = {};  // [L], C_l; read while a plan is made, then its own

  std::int64_t pixels() const { return pool_space ? 1 : height * width; }
};

struct AlignParameters {
  const float* const* bottleneck_local;   // [L] of [D,C_l]
  const float* const* bottleneck_global;  // [L] of [D,C_l]
  const float* offset_local;              // [L,D]
  const float* offset_global;             // [L,D]
};

// A layer's local tokens, [B,C_l,height,width].
struct AlignSource {
  const float* data;
  std::int64_t height, width;
};

struct AlignTokens {
  std::int64_t images;         // B
  const AlignSource* local;    // [L]
  const float* const* global;  // [L] of [B,C_l]
};

// The bottlenecks packed once; strict float32. Results are the same bits for any number of threads
// and any split of the images over calls. Methods may be called from several threads at a time.
class AlignTokensPlan {
 public:
  AlignTokensPlan(const AlignShape& shape, const AlignParameters& parameters, Isa isa);
  ~AlignTokensPlan();

  // A token that is not finite throws std::invalid_argument; the answer is of no use then.
  void run(const AlignTokens& tokens, float* local /* [B,L,D,H,W] */,
           float* global /* [B,L,D] */) const;

  const AlignShape& shape() const;
  Isa isa() const;
  std::int64_t bytes() const;            // of packed parameters
  std::int64_t flops_per_image() const;  // of the products; multiply-adds count two

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace brainfast
