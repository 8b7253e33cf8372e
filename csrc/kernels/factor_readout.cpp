#include "factor_readout.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <type_traits>

#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "bfloat16.h"
#include "factor_readout_bfloat.h"
#include "factor_readout_layout.h"

namespace brainfast {
namespace {

constexpr std::int64_t kLine = 16;  // elements that keep the scratch of two threads apart

template <class T>
const ReadoutKernels<T>& kernels_of(Isa isa) {
  if constexpr (std::is_same_v<T, double>) {
    return readout_kernels_portable_double();
  } else {
    if (isa == Isa::amx_emulated) return readout_kernels_wide();
#if defined(BRAINFAST_X86_KERNELS)
    if (isa >= Isa::avx512) return readout_kernels_avx512();
    if (isa == Isa::avx2) return readout_kernels_avx2();
#endif
    return readout_kernels_portable();
  }
}

// What the numbered buffers of a scratch hold.
enum Buffer { kTokens, kWork, kWeight };

template <class T>
void pack_tokens(const ReadoutLayout<T>& layout, const ReadoutTokens<T>& tokens, T* packed,
                 ThreadPool& pool) {
  constexpr std::int64_t kChannels = 32;
  const ReadoutView<T>& view = layout.view();
  const std::int64_t parts = (view.channels + kChannels - 1) / kChannels;
  const std::int64_t rows = view.layers * view.channels;
  pool.run(tokens.images * parts, [&](std::int64_t task, int) {
    const std::int64_t image = task / parts, begin = task % parts * kChannels;
    layout.kernels().pack_tokens(
        view, tokens.local + image * rows * view.pixels, tokens.global + image * rows, begin,
        std::min(begin + kChannels, view.channels), packed + image * view.image_stride);
  });
}

void round_tokens(Precision precision, std::int64_t count, float* packed, ThreadPool& pool) {
  constexpr std::int64_t kPiece = 1 << 14;
  pool.run((count + kPiece - 1) / kPiece, [&](std::int64_t task, int) {
    float* const at = packed + task * kPiece;
    round_operands(precision, std::min(kPiece, count - task * kPiece), at, at);
  });
}

template <class T>
void run_forward(const ReadoutLayout<T>& layout, const ReadoutTokens<T>& tokens, Scratch& scratch,
                 T* output, ThreadPool& pool, Precision precision = Precision::fp32) {
  constexpr std::int64_t kCacheElements = 1 << 16;  // of tokens that a cell reads from
  const ReadoutView<T>& view = layout.view();
  if (tokens.images == 0 || view.vertices == 0) return;
  T* const packed = scratch.room<T>(kTokens, tokens.images * view.image_stride);
  pack_tokens(layout, tokens, packed, pool);
  if constexpr (std::is_same_v<T, float>) {
    if (precision != Precision::fp32) {
      round_tokens(precision, tokens.images * view.image_stride, packed, pool);
    }
  }
  const std::int64_t size = layout.kernels().forward_scratch(view) + kLine;
  T* const work = scratch.room<T>(kWork, size * pool.size());
  // Weights that are packed on the way are packed once a unit, so then all images go together.
  const std::int64_t fitting = std::max<std::int64_t>(kCacheElements / (5 * view.pixel_stride), 1);
  const std::int64_t block = view.packed_weight ? fitting : tokens.images;
  const std::int64_t blocks = (tokens.images + block - 1) / block;
  const auto units = static_cast<std::int64_t>(layout.units().size());
  pool.run(units * blocks, [&](std::int64_t task, int participant) {
    const std::int64_t begin = task / units * block;
    layout.kernels().forward(view, layout.units()[task % units], begin,
                             std::min(begin + block, tokens.images), packed, output,
                             work + participant * size);
  });
}

// Token gradients of every image. A task is an image and a slice of its channels; how wide the
// slices are changes no sum, so it may follow the number of threads. sort_weight(group, to) is the
// kernels' own, or another that knows where the weights are.
template <class T, class F>
void run_token_gradients(const ReadoutLayout<T>& layout, std::int64_t images, const T* grad_output,
                         T* local, T* global, Scratch& scratch, ThreadPool& pool, F&& sort_weight) {
  const ReadoutView<T>& view = layout.view();
  if (images == 0) return;
  std::int64_t width = 8 * view.lanes;
  while (width > 2 * view.lanes &&
         images * ((view.channels + width - 1) / width) < 4 * pool.size()) {
    width /= 2;
  }
  const std::int64_t slices = (view.channels + width - 1) / width;
  const std::int64_t size = layout.kernels().token_scratch(view, width) + kLine;
  T* const work = scratch.room<T>(kWork, size * pool.size());
  const std::int64_t rows = view.layers * view.channels;
  const std::int64_t group_size = view.lanes * view.sorted_stride;
  T* const sorted = scratch.room<T>(kWeight, layout.groups() * group_size);
  pool.run(layout.groups(),
           [&](std::int64_t group, int) { sort_weight(group, sorted + group * group_size); });
  pool.run(images * slices, [&](std::int64_t task, int participant) {
    const std::int64_t image = task / slices, begin = task % slices * width;
    ReadoutTokenTask<T> slice{};
    slice.channel_begin = begin;
    slice.channel_end = std::min(begin + width, view.channels);
    slice.sorted_weight = sorted;
    slice.grad_output = grad_output + image * view.vertices;
    slice.local = local ? local + image * rows * view.pixels : nullptr;
    slice.global = global ? global + image * rows : nullptr;
    slice.scratch = work + participant * size;
    layout.kernels().token_gradients(view, slice);
  });
}

template <class T>
void run_vertex_gradients(const ReadoutLayout<T>& layout, const ReadoutTokens<T>& tokens,
                          const T* grad_output, const ReadoutGradients<T>& gradients,
                          Scratch& scratch, ThreadPool& pool) {
  const ReadoutView<T>& view = layout.view();
  T* const packed = scratch.room<T>(kTokens, tokens.images * view.image_stride);
  pack_tokens(layout, tokens, packed, pool);
  const std::int64_t size = layout.kernels().vertex_scratch(view, tokens.images) + kLine;
  T* const work = scratch.room<T>(kWork, size * pool.size());
  pool.run(static_cast<std::int64_t>(layout.units().size()),
           [&](std::int64_t unit, int participant) {
             ReadoutVertexTask<T> piece{};
             piece.images = tokens.images;
             piece.tokens = packed;
             piece.grad_output = grad_output;
             piece.space = gradients.space;
             piece.layer = gradients.layer;
             piece.scale = gradients.scale;
             piece.weight = gradients.weight;
             piece.scratch = work + participant * size;
             layout.kernels().vertex_gradients(view, layout.units()[unit], piece);
           });
}

template <class T>
void sum_images(const T* grad_output, std::int64_t images, std::int64_t vertices, T* grad_bias) {
  std::fill_n(grad_bias, vertices, T(0));
  for (std::int64_t image = 0; image < images; ++image) {
    for (std::int64_t v = 0; v < vertices; ++v) grad_bias[v] += grad_output[image * vertices + v];
  }
}

}  // namespace

template <class T>
void factor_readout_forward(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                            const ReadoutTokens<T>& tokens, T* output, Isa isa) {
  const auto pool = shared_pool();
  const ReadoutLayout<T> layout(shape, parameters, kernels_of<T>(isa), *pool);
  BorrowedScratch scratch(pool->shelf());
  run_forward(layout, tokens, *scratch, output, *pool);
}

template <class T>
void factor_readout_backward(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                             const ReadoutTokens<T>& tokens, const T* grad_output,
                             const ReadoutGradients<T>& gradients, Isa isa) {
  const auto pool = shared_pool();
  if (gradients.bias) sum_images(grad_output, tokens.images, shape.vertices, gradients.bias);
  if (!gradients.local && !gradients.global && !gradients.space && !gradients.layer &&
      !gradients.scale && !gradients.weight) {
    return;
  }
  const ReadoutLayout<T> layout(shape, parameters, kernels_of<T>(isa), *pool);
  BorrowedScratch scratch(pool->shelf());
  if (gradients.space || gradients.layer || gradients.scale || gradients.weight) {
    run_vertex_gradients(layout, tokens, grad_output, gradients, *scratch, *pool);
  }
  if (gradients.local || gradients.global) {
    run_token_gradients(
        layout, tokens.images, grad_output, gradients.local, gradients.global, *scratch, *pool,
        [&](std::int64_t group, T* to) { layout.kernels().sort_weight(layout.view(), group, to); });
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
        layout(given, parameters, kernels_of<float>(chosen), pool, unit_vertices(chosen)) {
    if (const BFloatKernels* kernels = bfloat_kernels_of(chosen)) {
      bfloat = std::make_unique<BFloatReadout>(layout, *kernels, wanted, pool);
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
    state_->bfloat->run(tokens, *scratch, output, *pool);
  } else {
    run_forward(state_->layout, tokens, *scratch, output, *pool, state_->precision);
  }
}

void FactorReadoutPlan::adjoint(std::int64_t objectives, const float* grad_output, float* local,
                                float* global) const {
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  const ReadoutLayout<float>& layout = state_->layout;
  run_token_gradients(layout, objectives, grad_output, local, global, *scratch, *pool,
                      [&](std::int64_t group, float* to) {
                        if (state_->bfloat) {
                          state_->bfloat->sort_weight(group, to);
                        } else {
                          layout.kernels().sort_weight(layout.view(), group, to);
                        }
                      });
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
  const ReadoutKernels<float>& kernels = kernels_of<float>(isa);
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
