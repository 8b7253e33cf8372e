// FactorTopy readout: y = mean_D(weight * sum_l layer_l ((1-scale) interp_l + scale global_l)) +
// bias, where interp_l is `local` sampled bilinearly, with zeros outside, at `space` (x, y in
// -1..1).
//
// Vertices are sorted by the grid cell that their sampling point falls in. Inside a cell all of
// them read the same pixels, so a cell is a matrix product and nothing of size V x D x L exists.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "../runtime/cpu_features.h"

namespace brainfast {

struct ReadoutShape {
  std::int64_t vertices = 0;  // V
  std::int64_t layers = 0;    // L
  std::int64_t channels = 0;  // D
  std::int64_t height = 0;    // H
  std::int64_t width = 0;     // W
  bool align_corners = false;

  std::int64_t pixels() const { return height * width; }
};

template <class T>
struct ReadoutParameters {
  const T* space;   // [V,2]
  const T* layer;   // [V,L]
  const T* scale;   // [V]
  const T* weight;  // [V,D]
  const T* bias;    // [V], or null for zeros
};

template <class T>
struct ReadoutTokens {
  std::int64_t images;  // B
  const T* local;       // [B,L,D,H,W]
  const T* global;      // [B,L,D]
};

// Where gradients go; null for one that nobody wants.
template <class T>
struct ReadoutGradients {
  T* local = nullptr;   // [B,L,D,H,W]
  T* global = nullptr;  // [B,L,D]
  T* space = nullptr;   // [V,2]
  T* layer = nullptr;   // [V,L]
  T* scale = nullptr;   // [V]
  T* weight = nullptr;  // [V,D]
  T* bias = nullptr;    // [V]

  bool of_tokens() const { return local || global; }
  bool of_vertices() const { return space || layer || scale || weight; }  // the bias apart
};

// T is float or double; double always runs the portable kernels. Results are the same bits for any
// number of threads. A sampling point that is not finite throws std::invalid_argument.
template <class T>
void factor_readout_forward(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                            const ReadoutTokens<T>& tokens, T* output /* [B,V] */, Isa isa);

template <class T>
void factor_readout_backward(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                             const ReadoutTokens<T>& tokens, const T* grad_output /* [B,V] */,
                             const ReadoutGradients<T>& gradients, Isa isa);

// The readout with its parameters sorted and packed once. Methods may be called from several
// threads at a time. `precision` is that of weight and tokens, in run; sampling, layers, scale,
// bias and every sum are float32. 1/D is applied after rounding.
class FactorReadoutPlan {
 public:
  // `isa` is one that select_isa gives for this precision.
  FactorReadoutPlan(const ReadoutShape& shape, const ReadoutParameters<float>& parameters, Isa isa,
                    Precision precision = Precision::fp32);
  ~FactorReadoutPlan();

  void run(const ReadoutTokens<float>& tokens, float* output /* [B,V] */) const;

  // The transpose of run without its bias: objectives on the response -> objectives on the tokens.
  // The weights are those of run; objectives and sums are float32 in every precision.
  void adjoint(std::int64_t objectives, const float* grad_output /* [O,V] */,
               float* local /* [O,L,D,H,W] */, float* global /* [O,L,D] */) const;

  const ReadoutShape& shape() const;
  Isa isa() const;
  Precision precision() const;
  std::int64_t bytes() const;            // of packed parameters
  std::int64_t flops_per_image() const;  // multiply-adds count two; padding is not counted

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// GFLOP/s of fused multiply-adds on registers, on every thread of the pool: the ceiling of run.
double fma_ceiling(Isa isa, double seconds);

}  // namespace brainfast
