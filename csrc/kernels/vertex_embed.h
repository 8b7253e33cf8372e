// Vertex embedding: y[b,v] = weight[v] . latent[b] + bias[v], the weights read once for a batch.
//
// The sum of a vertex and an image is made in one order, whatever else is computed beside it: a
// response has the same bits in any subset of vertices, any batch and for any number of threads.
#pragma once

#include <cstdint>
#include <memory>

#include "../runtime/cpu_features.h"

namespace brainfast {

template <class T>
struct EmbedParameters {
  std::int64_t vertices;  // V
  std::int64_t latent;    // K
  const T* weight;        // [V,K]
  const T* bias;          // [V], or null for zeros
};

// T is float or double; double always runs the portable kernels.
template <class T>
void vertex_embed_forward(const EmbedParameters<T>& parameters, std::int64_t images,
                          const T* latent /* [B,K] */, T* response /* [B,V] */, Isa isa);

// The embedding with its weights packed once. Methods may be called from several threads at a time.
// `precision` is that of weight and latent in run; bias and sums are float32.
class VertexEmbedPlan {
 public:
  // `isa` is one that select_isa gives for this precision.
  VertexEmbedPlan(const EmbedParameters<float>& parameters, Isa isa,
                  Precision precision = Precision::fp32);
  ~VertexEmbedPlan();

  void run(std::int64_t images, const float* latent /* [B,K] */, float* response /* [B,V] */) const;

  // The transpose of run without its bias: objectives on the response -> objectives on the latent.
  // The weights are those of run; objectives and sums are float32 in every precision.
  void adjoint(std::int64_t objectives, const float* grad_output /* [O,V] */,
               float* latent /* [O,K] */) const;

  std::int64_t vertices() const;
  std::int64_t latent() const;
  Isa isa() const;
  Precision precision() const;
  std::int64_t bytes() const;            // of packed parameters
  std::int64_t flops_per_image() const;  // multiply-adds count two

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace brainfast
