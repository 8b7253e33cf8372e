// Gradients of the readout with bfloat16 operands: tokens, weights, and grad_output alone or times
// the coefficients. Sums are float32.
#include <algorithm>

#include "factor_readout_bfloat.h"
#include "factor_readout_passes.h"

namespace brainfast {

void BFloatReadout::backward(std::int64_t images, const std::uint16_t* packed,
                             const float* grad_output, const ReadoutGradients<float>& gradients,
                             Scratch& scratch, ThreadPool& pool) const {
  if (gradients.of_vertices()) {
    vertex_gradients(images, packed, grad_output, gradients, scratch, pool);
  }
  if (gradients.of_tokens()) token_gradients(images, grad_output, gradients, scratch, pool);
}

void BFloatReadout::vertex_gradients(std::int64_t images, const std::uint16_t* packed,
                                     const float* grad_output,
                                     const ReadoutGradients<float>& gradients, Scratch& scratch,
                                     ThreadPool& pool) const {
  const std::uint16_t* tokens = packed;
  if (const std::int64_t turned = kernels_.turned_size(view_)) {
    const std::int64_t pixels = view_.sorted.pixels + 1, pairs = (images + 1) / 2;
    auto* const to = scratch.room<std::uint16_t>(kReadoutTokens, pairs * turned);
    pool.run(pairs * pixels, [&](std::int64_t task, int) {
      const std::int64_t pair = task / pixels;
      const std::uint16_t* const first = packed + 2 * pair * view_.image_stride;
      const bool both = 2 * pair + 1 < images;
      kernels_.turn_tokens(view_, first, both ? first + view_.image_stride : nullptr, task % pixels,
                           to + pair * turned);
    });
    tokens = to;
  }
  const std::int64_t size = kernels_.vertex_scratch(view_, images) + kReadoutLine;
  float* const work = scratch.room<float>(kReadoutWork, size * pool.size());
  const auto units = static_cast<std::int64_t>(layout_.units().size());
  pool.run(units, [&](std::int64_t unit, int participant) {
    kernels_.vertex_gradients(view_, layout_.units()[unit],
                              {images, tokens, grad_output, gradients.space, gradients.layer,
                               gradients.scale, gradients.weight, work + participant * size});
  });
}

void BFloatReadout::token_gradients(std::int64_t images, const float* grad_output,
                                    const ReadoutGradients<float>& gradients, Scratch& scratch,
                                    ThreadPool& pool) const {
  const ReadoutView<float>& sorted = view_.sorted;
  if (images == 0) return;
  const std::int64_t group_size = view_.pair_stride * sorted.lanes / 2;
  const std::int64_t rows = layout_.most_groups() + layout_.most_cells();
  auto* const pairs = scratch.room<std::uint32_t>(kReadoutWeight, rows * group_size);
  pool.run(sorted.cell_count, [&](std::int64_t index, int) {
    const ReadoutCell& cell = sorted.cells[index];
    std::uint32_t* to = pairs + (cell.group_begin + index) * group_size;
    for (std::int64_t group = cell.group_begin; group < cell.group_end; ++group) {
      kernels_.pair_vertices(view_, group, to);
      to += group_size;
    }
    std::fill_n(to, group_size, std::uint32_t{0});
  });

  constexpr std::int64_t kStep = 16;
  const std::int64_t width = token_slice(images, sorted.channels, kStep, pool);
  const std::int64_t slices = (sorted.channels + width - 1) / width;
  const std::int64_t size = kernels_.token_scratch(view_, width) + kReadoutLine;
  float* const work = scratch.room<float>(kReadoutWork, size * pool.size());
  const std::int64_t numbers = sorted.layers * sorted.channels;
  pool.run(images * slices, [&](std::int64_t task, int participant) {
    const std::int64_t image = task / slices, begin = task % slices * width;
    BFloatTokenTask slice{};
    slice.channel_begin = begin;
    slice.channel_end = std::min(begin + width, sorted.channels);
    slice.pairs = pairs;
    slice.grad_output = grad_output + image * sorted.vertices;
    slice.local = gradients.local ? gradients.local + image * numbers * sorted.pixels : nullptr;
    slice.global = gradients.global ? gradients.global + image * numbers : nullptr;
    slice.scratch = work + participant * size;
    kernels_.token_gradients(view_, slice);
  });
}

}  // namespace brainfast
