#include "factor_readout_workspace.h"

#include <algorithm>
#include <mutex>
#include <string>

#include "../runtime/aligned_buffer.h"
#include "../runtime/check.h"
#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "factor_readout_bfloat.h"
#include "factor_readout_layout.h"
#include "factor_readout_passes.h"

namespace brainfast {

struct FactorReadoutWorkspace::State {
  State(const ReadoutShape& given, Isa chosen, Precision wanted)
      : shape(given),
        isa(chosen),
        precision(wanted),
        layout(given, readout_kernels_of<float>(chosen),
               bfloat_kernels_of(chosen) ? bfloat_kernels_of(chosen)->unit_vertices
                                         : kReadoutUnitVertices) {
    if (const BFloatKernels* kernels = bfloat_kernels_of(chosen)) {
      bfloat = std::make_unique<BFloatReadout>(layout, *kernels, wanted);
    } else {
      layout.reserve_weight();
    }
  }

  bool rounds() const { return precision != Precision::fp32; }

  std::mutex busy;
  ReadoutShape shape;
  Isa isa;
  Precision precision;
  ReadoutLayout<float> layout;
  std::unique_ptr<BFloatReadout> bfloat;  // null where float32 operands are multiplied
  std::int64_t images = -1;
  AlignedBuffer<float> tokens;               // packed, without bfloat
  AlignedBuffer<std::uint16_t> pairs;        // packed, with bfloat
  AlignedBuffer<float> weight, grad_output;  // rounded, without bfloat
};

FactorReadoutWorkspace::FactorReadoutWorkspace(const ReadoutShape& shape, Isa isa,
                                               Precision precision) {
  check(precision != Precision::bf16x3, "precision", "fp32 or bf16", name_of(precision));
  state_ = std::make_unique<State>(shape, isa, precision);
}

FactorReadoutWorkspace::~FactorReadoutWorkspace() = default;

void FactorReadoutWorkspace::forward(const ReadoutParameters<float>& parameters,
                                     const ReadoutTokens<float>& tokens, float* output) {
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  State& state = *state_;
  const std::lock_guard alone(state.busy);
  state.images = -1;  // until this one is done
  ReadoutParameters<float> used = parameters;
  if (state.rounds() && !state.bfloat) {
    const std::int64_t size = state.shape.vertices * state.shape.channels;
    state.weight.reserve(size);
    round_readout_operands(state.precision, size, parameters.weight, state.weight.data(), *pool);
    used.weight = state.weight.data();
  }
  state.layout.update(used, *pool);
  if (state.bfloat) {
    state.bfloat->update(*pool);
    state.layout.forget_weight();
    state.pairs.reserve(tokens.images * state.bfloat->image_stride());
    state.bfloat->pack_tokens(tokens, state.pairs.data(), *pool);
    state.bfloat->run(tokens.images, state.pairs.data(), *scratch, output, *pool);
  } else {
    state.layout.pack_weight(*pool);
    const std::int64_t size = tokens.images * state.layout.view().image_stride;
    state.tokens.reserve(size);
    float* const packed = state.tokens.data();
    pack_readout_tokens(state.layout, tokens, packed, *pool);
    if (state.rounds()) round_readout_operands(state.precision, size, packed, packed, *pool);
    run_readout(state.layout, tokens.images, packed, output, *scratch, *pool);
  }
  state.images = tokens.images;
}

void FactorReadoutWorkspace::backward(std::int64_t images, const float* grad_output,
                                      const ReadoutGradients<float>& gradients) {
  State& state = *state_;
  const std::lock_guard alone(state.busy);
  check(state.images >= 0, "backward", "a forward before it", "none");
  check(state.images == images, "grad_output", "as many images as the last forward had",
        std::to_string(images) + " and not " + std::to_string(state.images));
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  const std::int64_t vertices = state.shape.vertices;
  if (gradients.bias) sum_images(grad_output, images, vertices, gradients.bias, *pool);
  if (state.bfloat) {
    state.bfloat->backward(images, state.pairs.data(), grad_output, gradients, *scratch, *pool);
    return;
  }
  if (state.rounds()) {
    state.grad_output.reserve(images * vertices);
    float* const rounded = state.grad_output.data();
    round_readout_operands(state.precision, images * vertices, grad_output, rounded, *pool);
    grad_output = rounded;
  }
  if (gradients.of_vertices()) {
    run_vertex_gradients(state.layout, images, state.tokens.data(), grad_output, gradients,
                         *scratch, *pool);
  }
  if (gradients.of_tokens()) {
    const float* const sorted = sorted_weight(state.layout, *scratch, *pool);
    run_token_gradients(state.layout, images, sorted, grad_output, gradients.local,
                        gradients.global, *scratch, *pool);
  }
}

const ReadoutShape& FactorReadoutWorkspace::shape() const { return state_->shape; }
Isa FactorReadoutWorkspace::isa() const { return state_->isa; }
Precision FactorReadoutWorkspace::precision() const { return state_->precision; }
std::int64_t FactorReadoutWorkspace::images() const { return state_->images; }

}  // namespace brainfast
