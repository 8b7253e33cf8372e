#include "factor_readout_bfloat.h"

#include <algorithm>

#include "bfloat16.h"
#include "factor_readout_passes.h"

namespace brainfast {
namespace {

constexpr std::int64_t kLanes = 16;

std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

}  // namespace

const BFloatKernels* bfloat_kernels_of(Isa isa) {
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  if (isa == Isa::avx512bf16) return &bfloat_kernels_avx512bf16();
#endif
#if defined(BRAINFAST_AMX_KERNELS)
  if (isa == Isa::amx) return &bfloat_kernels_amx();
#endif
  return isa == Isa::amx_emulated ? &bfloat_kernels_amx_emulated() : nullptr;
}

BFloatReadout::BFloatReadout(const ReadoutLayout<float>& layout, const BFloatKernels& kernels,
                             Precision precision)
    : layout_(layout), kernels_(kernels) {
  view_.sorted = layout.view();
  view_.parts = precision == Precision::bf16x3 ? 2 : 1;
  view_.depth = pieces(view_.sorted.channels, kernels.depth_step) * kernels.depth_step;
  view_.pair_stride = (pieces(view_.sorted.channels, 32) + 1) * 32;
  kernels.measure(view_);
  weight_.reserve(layout.most_groups() * view_.parts * view_.depth * kLanes);
  view_.weight = weight_.data();
  place_.reserve(view_.sorted.vertices);
}

void BFloatReadout::update(ThreadPool& pool) {
  view_.sorted = layout_.view();
  const float* const weight = view_.sorted.weight;
  view_.sorted.weight = nullptr;  // the caller's array need not live on
  view_.places = layout_.groups() * kLanes;
  const std::int64_t size = view_.parts * view_.depth * kLanes;
  pool.run(layout_.groups(), [&](std::int64_t group, int) {
    kernels_.pack_weight(view_, group, weight, weight_.data() + group * size);
  });
  for (std::int64_t place = 0; place < view_.places; ++place) {
    const std::int32_t vertex = view_.sorted.vertex[place];
    if (vertex >= 0) place_.data()[vertex] = static_cast<std::int32_t>(place);
  }
}

void BFloatReadout::sort_weight(std::int64_t group, float* sorted) const {
  const std::int64_t size = view_.depth * kLanes, channels = view_.sorted.channels;
  const std::uint16_t* const from = weight_.data() + group * view_.parts * size;
  const float mean = 1.0f / static_cast<float>(channels);
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    float* const row = sorted + lane * view_.sorted.sorted_stride;
    if (view_.sorted.vertex[group * kLanes + lane] < 0) return;  // nobody reads rows of padding
    for (std::int64_t d = 0; d < channels; ++d) {
      const std::int64_t at = d / 2 * 2 * kLanes + 2 * lane + d % 2;
      const float low = view_.parts == 2 ? widen_bfloat16(from[size + at]) : 0.0f;
      row[d] = (widen_bfloat16(from[at]) + low) * mean;
    }
    std::fill(row + channels, row + view_.sorted.sorted_stride, 0.0f);
  }
}

const float* BFloatReadout::sorted_weight(Scratch& scratch, ThreadPool& pool) const {
  const std::int64_t size = kLanes * view_.sorted.sorted_stride;
  float* const sorted = scratch.room<float>(kReadoutWeight, layout_.groups() * size);
  pool.run(layout_.groups(),
           [&](std::int64_t group, int) { sort_weight(group, sorted + group * size); });
  return sorted;
}

void BFloatReadout::pack_tokens(const ReadoutTokens<float>& tokens, std::uint16_t* packed,
                                ThreadPool& pool) const {
  constexpr std::int64_t kPackChannels = 32;
  const std::int64_t parts = pieces(view_.sorted.channels, kPackChannels);
  const std::int64_t rows = view_.sorted.layers * view_.sorted.channels;
  pool.run(tokens.images * parts, [&](std::int64_t task, int) {
    const std::int64_t image = task / parts, begin = task % parts * kPackChannels;
    kernels_.pack_tokens(view_, tokens.local + image * rows * view_.sorted.pixels,
                         tokens.global + image * rows, begin,
                         std::min(begin + kPackChannels, view_.sorted.channels),
                         packed + image * view_.image_stride);
  });
}

void BFloatReadout::run(std::int64_t images, const std::uint16_t* packed, Scratch& scratch,
                        float* output, ThreadPool& pool) const {
  constexpr std::int64_t kPermute = 4096;
  constexpr std::int64_t kCacheElements = 1 << 17;  // of tokens that a cell reads from
  const std::int64_t vertices = view_.sorted.vertices;
  if (images == 0 || vertices == 0) return;

  const std::int64_t size = kernels_.forward_scratch(view_) + kReadoutLine;
  float* const work = scratch.room<float>(kReadoutWork, size * pool.size());
  float* const response =
      scratch.room<float>(kReadoutWeight, images * layout_.most_groups() * kLanes);
  const std::int64_t cell = 5 * view_.parts * view_.pixel_stride;
  const std::int64_t block = std::max<std::int64_t>(kCacheElements / cell, 1);
  const auto units = static_cast<std::int64_t>(layout_.units().size());
  pool.run(units * pieces(images, block), [&](std::int64_t task, int participant) {
    const std::int64_t begin = task / units * block;
    kernels_.forward(view_, layout_.units()[task % units], begin, std::min(begin + block, images),
                     packed, response, work + participant * size);
  });

  // Neighbours in the cortex lie far apart in sorted order: reading them in any order is cheap,
  // writing them is not.
  const std::int64_t runs = pieces(vertices, kPermute);
  pool.run(images * runs, [&](std::int64_t task, int) {
    const std::int64_t image = task / runs, begin = task % runs * kPermute;
    const float* const from = response + image * view_.places;
    float* const to = output + image * vertices;
    const std::int64_t end = std::min(begin + kPermute, vertices);
    for (std::int64_t v = begin; v < end; ++v) to[v] = from[place_.data()[v]];
  });
}

std::int64_t BFloatReadout::bytes() const {
  return static_cast<std::int64_t>(weight_.capacity() * sizeof(std::uint16_t) +
                                   place_.capacity() * sizeof(std::int32_t));
}

}  // namespace brainfast
