#include <algorithm>
#include <vector>

#include "bfloat16.h"
#include "factor_projection.h"
#include "factor_projection_driver.h"

namespace brainfast {
namespace {

// What the numbered buffers of a scratch hold.
enum Buffer { kSums, kTokens, kPieces };

const BFloatProjectionKernels* bfloat_kernels_of(Isa isa) {
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  if (isa == Isa::avx512bf16) return &bfloat_projection_kernels_avx512bf16();
#endif
#if defined(BRAINFAST_AMX_KERNELS)
  if (isa == Isa::amx) return &bfloat_projection_kernels_amx();
#endif
  return isa == Isa::amx_emulated ? &bfloat_projection_kernels_amx_emulated() : nullptr;
}

}  // namespace

struct FactorProjectionPlan::State {
  struct Layer {
    std::int64_t tokens, channels;
    PackedPanels filters, maps;
  };

  // The matrices of a layer's tokens, from image `begin` on; returns how many they are.
  static std::int64_t matrices_of(const Layer& layer, const ProjectionSource& source,
                                  std::int64_t begin, TokenMatrix<float>* to);
  std::int64_t fill_matrices(const ProjectionSource* sources, std::int64_t begin,
                             TokenMatrix<float>* to) const;
  // Operands of the images into scratch, matrix after matrix.
  template <class Operand>
  void pack_tokens(const TokenMatrix<float>* matrices, std::int64_t count, std::int64_t images,
                   Operand* to, ThreadPool& pool) const;
  template <class Operand, class Project>
  void run(std::int64_t images, const ProjectionSource* sources, float* answer, Project project,
           Scratch& scratch, ThreadPool& pool) const;

  std::int64_t operands_per_image() const;
  bool packs_tokens() const { return precision != Precision::fp32; }

  std::int64_t latent;
  Isa isa;
  Precision precision;
  const ProjectionKernels<float>& kernels;
  const BFloatProjectionKernels* bfloat;  // null where float32 operands are multiplied
  OperandForm form;
  std::vector<Layer> layers;
  std::vector<float> bias;
};

std::int64_t FactorProjectionPlan::State::matrices_of(const Layer& layer,
                                                      const ProjectionSource& source,
                                                      std::int64_t begin, TokenMatrix<float>* to) {
  const std::int64_t tokens = layer.tokens, channels = layer.channels;
  if (!source.channels_first) {
    *to = {source.tokens + begin * tokens * channels, tokens, channels, false, 0};
    return 1;
  }
  const std::int64_t first = source.global ? 1 : 0, places = tokens - first;
  std::int64_t count = 0;
  if (places)
    to[count++] = {source.tokens + begin * channels * places, channels, places, true, first};
  if (source.global) to[count++] = {source.global + begin * channels, 1, channels, false, 0};
  return count;
}

std::int64_t FactorProjectionPlan::State::fill_matrices(const ProjectionSource* sources,
                                                        std::int64_t begin,
                                                        TokenMatrix<float>* to) const {
  std::int64_t count = 0;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    count += matrices_of(layers[layer], sources[layer], begin, to + count);
  }
  return count;
}

template <class Operand>
void FactorProjectionPlan::State::pack_tokens(const TokenMatrix<float>* matrices,
                                              std::int64_t count, std::int64_t images, Operand* to,
                                              ThreadPool& pool) const {
  pool.run(count * images, [&](std::int64_t index, int) {
    const TokenMatrix<float>& matrix = matrices[index / images];
    const std::int64_t image = index % images;
    Operand* at = to + image * matrix.packed_size(form);
    for (const auto* before = matrices; before != &matrix; ++before) {
      at += images * before->packed_size(form);
    }
    const float* const from = matrix.data + image * matrix.rows * matrix.steps;
    if constexpr (std::is_same_v<Operand, float>) {
      round_operands(precision, matrix.rows * matrix.steps, from, at);
    } else {
      const std::int64_t rows = matrix.padded_rows(form), depth = matrix.depth(form);
      for (int part = 0; part < form.parts; ++part) {
        bfloat->pack_rows(from, matrix.rows, matrix.steps, matrix.lead(form), rows, 2 * depth, part,
                          reinterpret_cast<std::uint16_t*>(at + part * rows * depth));
      }
    }
  });
}

std::int64_t FactorProjectionPlan::State::operands_per_image() const {
  std::int64_t size = 0;  // of the widest form that a layer's tokens may come in
  for (const Layer& layer : layers) {
    const TokenMatrix<float> rows{nullptr, layer.tokens, layer.channels, false, 0};
    const TokenMatrix<float> columns{nullptr, layer.channels, layer.tokens, true, 0};
    const TokenMatrix<float> global{nullptr, 1, layer.channels, false, 0};
    size += std::max(rows.packed_size(form), columns.packed_size(form) + global.packed_size(form));
  }
  return size;
}

template <class Operand, class Project>
void FactorProjectionPlan::State::run(std::int64_t images, const ProjectionSource* sources,
                                      float* answer, Project project, Scratch& scratch,
                                      ThreadPool& pool) const {
  const std::int64_t per_image = operands_per_image();
  const auto bytes = static_cast<std::int64_t>(per_image * sizeof(Operand));
  const std::int64_t block =
      std::min(images_at_a_time(bytes, latent, form.lanes, pool.size()), images);
  const auto most = static_cast<std::int64_t>(2 * layers.size());
  using Matrix = TokenMatrix<float>;
  using Piece = ProjectionPiece<Operand>;
  auto* const memory = scratch.room<std::byte>(kPieces, most * (sizeof(Matrix) + sizeof(Piece)));
  auto* const matrices = reinterpret_cast<Matrix*>(memory);
  auto* const pieces = reinterpret_cast<Piece*>(memory + most * sizeof(Matrix));
  float* const sums = scratch.room<float>(kSums, block * padded_to(latent, form.lanes));
  Operand* const packed =
      packs_tokens() ? scratch.room<Operand>(kTokens, block * per_image) : nullptr;
  for (std::int64_t begin = 0; begin < images; begin += block) {
    const std::int64_t here = std::min(block, images - begin);
    const std::int64_t count = fill_matrices(sources, begin, matrices);
    if (packed) pack_tokens(matrices, count, here, packed, pool);
    const Operand* at = packed;
    std::int64_t piece = 0;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      const ProjectionLayerView<Operand> view{layers[layer].tokens, layers[layer].channels,
                                              layers[layer].filters.template panels<Operand>(),
                                              layers[layer].maps.template panels<Operand>()};
      Matrix unused[2];
      const std::int64_t end = piece + matrices_of(layers[layer], sources[layer], 0, unused);
      for (; piece < end; ++piece) {
        if constexpr (std::is_same_v<Operand, float>) {
          if (!packed) at = matrices[piece].data;
        }
        pieces[piece] = piece_of(matrices[piece], form, view, at);
        at += here * matrices[piece].packed_size(form);
      }
    }
    project_images(pieces, count, form.parts, here, latent, form.lanes,
                   bias.empty() ? nullptr : bias.data(), project, sums, answer + begin * latent,
                   pool);
  }
}

FactorProjectionPlan::FactorProjectionPlan(std::int64_t latent, std::int64_t layers,
                                           const ProjectionLayer* factors, const float* bias,
                                           Isa isa, Precision precision) {
  const ProjectionKernels<float>& kernels = projection_kernels_of<float>(isa);
  const BFloatProjectionKernels* const bfloat = bfloat_kernels_of(isa);
  OperandForm form;
  form.lanes = kernels.lanes;
  if (bfloat) {
    form = {16, 2, bfloat->depth_step, bfloat->row_step, precision == Precision::bf16x3 ? 2 : 1};
  }
  state_ = std::make_unique<State>(State{latent, isa, precision, kernels, bfloat, form, {}, {}});
  if (bias) state_->bias.assign(bias, bias + latent);
  const auto pool = shared_pool();
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const auto& [tokens, channels, filters, maps] = factors[layer];
    state_->layers.push_back(
        {tokens, channels, PackedPanels(filters, latent, channels, 0, form, precision, *pool),
         PackedPanels(maps, latent, tokens, lead_of(form), form, precision, *pool)});
  }
}

FactorProjectionPlan::~FactorProjectionPlan() = default;

void FactorProjectionPlan::run(std::int64_t images, const ProjectionSource* sources,
                               float* latent) const {
  if (images == 0 || state_->latent == 0) return;
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  if (state_->bfloat) {
    state_->run<std::uint32_t>(images, sources, latent, state_->bfloat->project, *scratch, *pool);
  } else {
    state_->run<float>(images, sources, latent, state_->kernels.project, *scratch, *pool);
  }
}

void FactorProjectionPlan::adjoint(std::int64_t objectives, const float* grad_output,
                                   float* const* tokens) const {
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  for (std::size_t index = 0; index < state_->layers.size(); ++index) {
    const State::Layer& layer = state_->layers[index];
    const std::int64_t size = state_->latent * layer.channels;
    float* const filters = (*scratch).room<float>(2, size + state_->latent * layer.tokens);
    layer.filters.unpack(filters);
    layer.maps.unpack(filters + size);
    project_token_gradients(state_->kernels, objectives, layer.tokens, layer.channels,
                            state_->latent, grad_output, filters, filters + size, tokens[index],
                            *scratch, *pool);
  }
}

std::int64_t FactorProjectionPlan::latent() const { return state_->latent; }
std::int64_t FactorProjectionPlan::layers() const {
  return static_cast<std::int64_t>(state_->layers.size());
}
std::int64_t FactorProjectionPlan::tokens(std::int64_t layer) const {
  return state_->layers[layer].tokens;
}
std::int64_t FactorProjectionPlan::channels(std::int64_t layer) const {
  return state_->layers[layer].channels;
}
Isa FactorProjectionPlan::isa() const { return state_->isa; }
Precision FactorProjectionPlan::precision() const { return state_->precision; }

std::int64_t FactorProjectionPlan::bytes() const {
  std::int64_t total = 0;
  for (const auto& layer : state_->layers) total += layer.filters.bytes() + layer.maps.bytes();
  return total;
}

std::int64_t FactorProjectionPlan::flops_per_image() const {
  std::int64_t total = 0;
  for (const auto& layer : state_->layers) {
    total += 2 * state_->latent * layer.tokens * layer.channels;
  }
  return total;
}

}  // namespace brainfast
