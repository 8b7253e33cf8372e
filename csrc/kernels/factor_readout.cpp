#include "factor_readout.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "bfloat16.h"
#include "factor_readout_bfloat.h"
#include "factor_readout_layout.h"
#include "factor_readout_passes.h"

namespace brainfast {
namespace {

template <class T>
T* packed_tokens(const ReadoutLayout<T>& layout, const ReadoutTokens<T>& tokens, Scratch& scratch,
                 ThreadPool& pool) {
  T* const packed = scratch.room<T>(kReadoutTokens, tokens.images * layout.view().image_stride);
  pack_readout_tokens(layout, tokens, packed, pool);
  return packed;
}

}  // namespace

template <class T>
void factor_readout_forward(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                            const ReadoutTokens<T>& tokens, T* output, Isa isa) {
  const auto pool = shared_pool();
  const ReadoutLayout<T> layout(shape, parameters, readout_kernels_of<T>(isa), *pool);
  BorrowedScratch scratch(pool->shelf());
  run_readout(layout, tokens.images, packed_tokens(layout, tokens, *scratch, *pool), output,
              *scratch, *pool);
}

template <class T>
void factor_readout_backward(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                             const ReadoutTokens<T>& tokens, const T* grad_output,
                             const ReadoutGradients<T>& gradients, Isa isa) {
  const auto pool = shared_pool();
  if (gradients.bias) {
    sum_images(grad_output, tokens.images, shape.vertices, gradients.bias, *pool);
  }
  if (!gradients.of_vertices() && !gradients.of_tokens()) return;
  const ReadoutLayout<T> layout(shape, parameters, readout_kernels_of<T>(isa), *pool);
  BorrowedScratch scratch(pool->shelf());
  if (gradients.of_vertices()) {
    run_vertex_gradients(layout, tokens.images, packed_tokens(layout, tokens, *scratch, *pool),
                         grad_output, gradients, *scratch, *pool);
  }
  if (gradients.of_tokens()) {
    const T* const sorted = sorted_weight(layout, *scratch, *pool);
    run_token_gradients(layout, tokens.images, sorted, grad_output, gradients.local,
                        gradients.global, *scratch, *pool);
  }
}

template void factor_readout_forward(const ReadoutShape&, const ReadoutParameters<float>&,
                                     const ReadoutTokens<float>&, float*, Isa);
template void factor_readout_forward(const ReadoutShape&, const ReadoutParameters<double>&,
                                     const ReadoutTokens<double>&, double*, Isa);
template void factor_readout_backward(const ReadoutShape&, const ReadoutParameters<float>&,
                                      const ReadoutTokens<float>&, const float*,
                                      const ReadoutGradients<float>&, Isa);
template void factor_readout_backward(const ReadoutShape&, const ReadoutParameters<double>&,
                                      const ReadoutTokens<double>&, const double*,
                                      const ReadoutGradients<double>&, Isa);

struct FactorReadoutPlan::State {
  State(const ReadoutShape& given, const ReadoutParameters<float>& parameters, Precision wanted,
        Isa chosen, ThreadPool& pool)
      : shape(given),
        precision(wanted),
        isa(chosen),
        layout(given, parameters, readout_kernels_of<float>(chosen), pool, unit_vertices(chosen)) {
    if (const BFloatKernels* kernels = bfloat_kernels_of(chosen)) {
      bfloat = std::make_unique<BFloatReadout>(layout, *kernels, wanted);
      bfloat->update(pool);
      layout.forget_weight();
    } else {
      layout.pack_weight(pool);
    }
  }

  static std::int64_t unit_vertices(Isa isa) {
    const BFloatKernels* kernels = bfloat_kernels_of(isa);
    return kernels ? kernels->unit_vertices : kReadoutUnitVertices;
  }

  ReadoutShape shape;
  Precision precision;
  Isa isa;
  ReadoutLayout<float> layout;
  std::unique_ptr<BFloatReadout> bfloat;  // null where float32 operands are multiplied
};

FactorReadoutPlan::FactorReadoutPlan(const ReadoutShape& shape,
                                     const ReadoutParameters<float>& parameters, Isa isa,
                                     Precision precision) {
  const auto pool = shared_pool();
  ReadoutParameters<float> used = parameters;
  AlignedBuffer<float> rounded;
  if (precision != Precision::fp32 && !bfloat_kernels_of(isa)) {
    rounded.reserve(shape.vertices * shape.channels);
    pool->run(shape.vertices, [&](std::int64_t vertex, int) {
      const std::int64_t row = vertex * shape.channels;
      round_operands(precision, shape.channels, parameters.weight + row, rounded.data() + row);
    });
    used.weight = rounded.data();
  }
  state_ = std::make_unique<State>(shape, used, precision, isa, *pool);
}

FactorReadoutPlan::~FactorReadoutPlan() = default;

void FactorReadoutPlan::run(const ReadoutTokens<float>& tokens, float* output) const {
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  if (state_->bfloat) {
    BFloatReadout& bfloat = *state_->bfloat;
    auto* const packed =
        scratch->room<std::uint16_t>(kReadoutTokens, tokens.images * bfloat.image_stride());
    bfloat.pack_tokens(tokens, packed, *pool);
    bfloat.run(tokens.images, packed, *scratch, output, *pool);
    return;
  }
  const ReadoutLayout<float>& layout = state_->layout;
  float* const packed = packed_tokens(layout, tokens, *scratch, *pool);
  if (state_->precision != Precision::fp32) {
    round_readout_operands(state_->precision, tokens.images * layout.view().image_stride, packed,
                           packed, *pool);
  }
  run_readout(layout, tokens.images, packed, output, *scratch, *pool);
}

void FactorReadoutPlan::adjoint(std::int64_t objectives, const float* grad_output, float* local,
                                float* global) const {
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  const ReadoutLayout<float>& layout = state_->layout;
  const float* const sorted = state_->bfloat ? state_->bfloat->sorted_weight(*scratch, *pool)
                                             : sorted_weight(layout, *scratch, *pool);
  run_token_gradients(layout, objectives, sorted, grad_output, local, global, *scratch, *pool);
}

const ReadoutShape& FactorReadoutPlan::shape() const { return state_->shape; }
Isa FactorReadoutPlan::isa() const { return state_->isa; }
Precision FactorReadoutPlan::precision() const { return state_->precision; }

std::int64_t FactorReadoutPlan::bytes() const {
  return state_->layout.bytes() + (state_->bfloat ? state_->bfloat->bytes() : 0);
}

std::int64_t FactorReadoutPlan::flops_per_image() const {
  return 2 * state_->layout.corners() * state_->shape.layers * state_->shape.channels;
}

double fma_ceiling(Isa isa, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto pool = shared_pool();
  const ReadoutKernels<float>& kernels = readout_kernels_of<float>(isa);
  std::atomic<std::int64_t> operations{0};
  const auto begin = Clock::now();
  const auto end = begin + std::chrono::duration<double>(seconds);
  pool->run(pool->size(), [&](std::int64_t, int) {
    alignas(64) float sink[2 * 16];
    while (Clock::now() < end) {
      std::fill_n(sink, 2 * 16, 0.5f);
      operations += kernels.fma_loop(20000, sink);
    }
  });
  const std::chrono::duration<double> taken = Clock::now() - begin;
  return static_cast<double>(operations) / taken.count() * 1e-9;
}

}  // namespace brainfast
