// Factor projection: p[b,k] = sum_t maps[k,t] (filters[k] . tokens[b,t]), a channel filter and a
// map over tokens for every entry of the latent.
//
// Tokens meet one factor in a matrix product, and the other one in its epilogue, tile by tile, so
// that [B,T,K] never exists.
#pragma once

#include <cstdint>
#include <memory>

#include "../runtime/cpu_features.h"

namespace brainfast {

template <class T>
struct ProjectionInputs {
  std::int64_t images = 0;     // B
  std::int64_t tokens = 0;     // T
  std::int64_t channels = 0;   // C
  std::int64_t latent = 0;     // K
  const T* source = nullptr;   // [B,T,C], the tokens
  const T* filters = nullptr;  // [K,C]
  const T* maps = nullptr;     // [K,T]
};

// Where gradients go; null for one that nobody wants.
template <class T>
struct ProjectionGradients {
  T* tokens = nullptr;   // [B,T,C]
  T* filters = nullptr;  // [K,C]
  T* maps = nullptr;     // [K,T]
};

// T is float or double; double always runs the portable kernels. Results are the same bits for any
// number of threads.
template <class T>
void factor_projection_forward(const ProjectionInputs<T>& inputs, T* latent /* [B,K] */, Isa isa);

// The gradients of filters and maps share one product over the batch; that of the tokens is
// another.
template <class T>
void factor_projection_backward(const ProjectionInputs<T>& inputs, const T* grad_output /* [B,K] */,
                                const ProjectionGradients<T>& gradients, Isa isa);

struct ProjectionLayer {
  std::int64_t tokens;    // T_l, the class token included
  std::int64_t channels;  // C_l
  const float* filters;   // [K,C_l]
  const float* maps;      // [K,T_l]
};

// A layer's tokens in one of three forms; none is copied or transposed where operands are float32.
struct ProjectionSource {
  const float* tokens;  // [B,T,C]; channels_first: [B,C,T], or [B,C,T-1] behind a class token
  const float* global;  // null, or [B,C]: the class token, which is entry 0 of the maps
  bool channels_first;
};

// The sum of several layers' projections, and a bias, with the factors packed once. Methods may be
// called from several threads at a time. `precision` is that of tokens, filters and maps in run;
// bias and every sum are float32.
class FactorProjectionPlan {
 public:
  // `isa` is one that select_isa gives for this precision; a null bias is zeros.
  FactorProjectionPlan(std::int64_t latent, std::int64_t layers, const ProjectionLayer* factors,
                       const float* bias /* [K] */, Isa isa, Precision precision = Precision::fp32);
  ~FactorProjectionPlan();

  void run(std::int64_t images, const ProjectionSource* sources /* [L] */,
           float* latent /* [B,K] */) const;

  // The transpose of run without its bias: objectives on the latent -> objectives on the tokens.
  // The factors are those of run; objectives and sums are float32 in every precision.
  void adjoint(std::int64_t objectives, const float* grad_output /* [O,K] */,
               float* const* tokens /* [L] of [O,T_l,C_l] */) const;

  std::int64_t latent() const;
  std::int64_t layers() const;
  std::int64_t tokens(std::int64_t layer) const;
  std::int64_t channels(std::int64_t layer) const;
  Isa isa() const;
  Precision precision() const;
  std::int64_t bytes() const;            // of packed factors
  std::int64_t flops_per_image() const;  // of the products; multiply-adds count two

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace brainfast
