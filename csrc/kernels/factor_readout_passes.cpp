#include "factor_readout_passes.h"

#include <algorithm>
#include <type_traits>

#include "bfloat16.h"
#include "factor_readout_bfloat_kernels.h"

namespace brainfast {

template <class T>
const ReadoutKernels<T>& readout_kernels_of(Isa isa) {
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

template <class T>
void pack_readout_tokens(const ReadoutLayout<T>& layout, const ReadoutTokens<T>& tokens, T* packed,
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

void round_readout_operands(Precision precision, std::int64_t count, const float* from, float* to,
                            ThreadPool& pool) {
  constexpr std::int64_t kPiece = 1 << 14;
  pool.run((count + kPiece - 1) / kPiece, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kPiece;
    round_operands(precision, std::min(kPiece, count - begin), from + begin, to + begin);
  });
}

template <class T>
void run_readout(const ReadoutLayout<T>& layout, std::int64_t images, const T* packed, T* output,
                 Scratch& scratch, ThreadPool& pool) {
  constexpr std::int64_t kCacheElements = 1 << 16;  // of tokens that a cell reads from
  const ReadoutView<T>& view = layout.view();
  if (images == 0 || view.vertices == 0) return;
  const std::int64_t size = layout.kernels().forward_scratch(view) + kReadoutLine;
  T* const work = scratch.room<T>(kReadoutWork, size * pool.size());
  // Weights that are packed on the way are packed once a unit, so then all images go together.
  const std::int64_t fitting = std::max<std::int64_t>(kCacheElements / (5 * view.pixel_stride), 1);
  const std::int64_t block = view.packed_weight ? fitting : images;
  const std::int64_t blocks = (images + block - 1) / block;
  const auto units = static_cast<std::int64_t>(layout.units().size());
  pool.run(units * blocks, [&](std::int64_t task, int participant) {
    const std::int64_t begin = task / units * block;
    layout.kernels().forward(view, layout.units()[task % units], begin,
                             std::min(begin + block, images), packed, output,
                             work + participant * size);
  });
}

template <class T>
const T* sorted_weight(const ReadoutLayout<T>& layout, Scratch& scratch, ThreadPool& pool) {
  const std::int64_t size = layout.view().lanes * layout.view().sorted_stride;
  T* const sorted = scratch.room<T>(kReadoutWeight, layout.most_groups() * size);
  pool.run(layout.groups(), [&](std::int64_t group, int) {
    layout.kernels().sort_weight(layout.view(), group, sorted + group * size);
  });
  return sorted;
}

std::int64_t token_slice(std::int64_t images, std::int64_t channels, std::int64_t lanes,
                         const ThreadPool& pool) {
  std::int64_t width = 8 * lanes;
  while (width > 2 * lanes && images * ((channels + width - 1) / width) < 4 * pool.size()) {
    width /= 2;
  }
  return width;
}

template <class T>
void run_token_gradients(const ReadoutLayout<T>& layout, std::int64_t images, const T* sorted,
                         const T* grad_output, T* local, T* global, Scratch& scratch,
                         ThreadPool& pool) {
  const ReadoutView<T>& view = layout.view();
  if (images == 0) return;
  const std::int64_t width = token_slice(images, view.channels, view.lanes, pool);
  const std::int64_t slices = (view.channels + width - 1) / width;
  const std::int64_t size = layout.kernels().token_scratch(view, width) + kReadoutLine;
  T* const work = scratch.room<T>(kReadoutWork, size * pool.size());
  const std::int64_t rows = view.layers * view.channels;
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
void run_vertex_gradients(const ReadoutLayout<T>& layout, std::int64_t images, const T* packed,
                          const T* grad_output, const ReadoutGradients<T>& gradients,
                          Scratch& scratch, ThreadPool& pool) {
  const ReadoutView<T>& view = layout.view();
  const std::int64_t size = layout.kernels().vertex_scratch(view, images) + kReadoutLine;
  T* const work = scratch.room<T>(kReadoutWork, size * pool.size());
  pool.run(static_cast<std::int64_t>(layout.units().size()),
           [&](std::int64_t unit, int participant) {
             ReadoutVertexTask<T> piece{};
             piece.images = images;
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
void sum_images(const T* grad_output, std::int64_t images, std::int64_t vertices, T* grad_bias,
                ThreadPool& pool) {
  constexpr std::int64_t kPiece = 4096;
  pool.run((vertices + kPiece - 1) / kPiece, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kPiece, end = std::min(begin + kPiece, vertices);
    std::fill(grad_bias + begin, grad_bias + end, T(0));
    for (std::int64_t image = 0; image < images; ++image) {
      const T* const row = grad_output + image * vertices;
      for (std::int64_t v = begin; v < end; ++v) grad_bias[v] += row[v];
    }
  });
}

template const ReadoutKernels<float>& readout_kernels_of<float>(Isa);
template void pack_readout_tokens(const ReadoutLayout<float>&, const ReadoutTokens<float>&, float*,
                                  ThreadPool&);
template const float* sorted_weight(const ReadoutLayout<float>&, Scratch&, ThreadPool&);
template void run_readout(const ReadoutLayout<float>&, std::int64_t, const float*, float*, Scratch&,
                          ThreadPool&);
template void run_vertex_gradients(const ReadoutLayout<float>&, std::int64_t, const float*,
                                   const float*, const ReadoutGradients<float>&, Scratch&,
                                   ThreadPool&);
template void run_token_gradients(const ReadoutLayout<float>&, std::int64_t, const float*,
                                  const float*, float*, float*, Scratch&, ThreadPool&);
template void sum_images(const float*, std::int64_t, std::int64_t, float*, ThreadPool&);
template const ReadoutKernels<double>& readout_kernels_of<double>(Isa);
template void pack_readout_tokens(const ReadoutLayout<double>&, const ReadoutTokens<double>&,
                                  double*, ThreadPool&);
template const double* sorted_weight(const ReadoutLayout<double>&, Scratch&, ThreadPool&);
template void run_readout(const ReadoutLayout<double>&, std::int64_t, const double*, double*,
                          Scratch&, ThreadPool&);
template void run_vertex_gradients(const ReadoutLayout<double>&, std::int64_t, const double*,
                                   const double*, const ReadoutGradients<double>&, Scratch&,
                                   ThreadPool&);
template void run_token_gradients(const ReadoutLayout<double>&, std::int64_t, const double*,
                                  const double*, double*, double*, Scratch&, ThreadPool&);
template void sum_images(const double*, std::int64_t, std::int64_t, double*, ThreadPool&);

}  // namespace brainfast
