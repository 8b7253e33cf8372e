// The readout of a training step: its order, packed weights and packed tokens stay from the forward
// to the backward, and its memory from step to step.
#pragma once

#include <cstdint>
#include <memory>

#include "../runtime/cpu_features.h"
#include "factor_readout.h"

namespace brainfast {

// One call at a time: others wait. Results are the same bits for any number of threads of the
// pool, and depend on the arguments of the last forward alone: never on the steps before it.
//
// In bf16 the operands of every product are rounded: tokens, weights, grad_output, and where a path
// has dot products of bfloat16, grad_output times a coefficient. 1/D is applied after rounding;
// parameters, gradients and sums are float32.
class FactorReadoutWorkspace {
 public:
  // `isa` is one that select_isa gives for this precision, which is fp32 or bf16.
  FactorReadoutWorkspace(const ReadoutShape& shape, Isa isa, Precision precision);
  ~FactorReadoutWorkspace();

  // Nothing but the caller's arrays is allocated after the first step of a number of images.
  void forward(const ReadoutParameters<float>& parameters, const ReadoutTokens<float>& tokens,
               float* output /* [B,V] */);

  // Gradients of the last forward. Throws std::invalid_argument where there was none, or one of
  // another number of images.
  void backward(std::int64_t images, const float* grad_output /* [B,V] */,
                const ReadoutGradients<float>& gradients);

  const ReadoutShape& shape() const;
  Isa isa() const;
  Precision precision() const;
  std::int64_t images() const;  // of the last forward, -1 without one

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace brainfast
