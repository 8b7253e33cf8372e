#include "vertex_embed.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "bfloat16.h"
#include "packed_panels.h"
#include "vertex_embed_kernels.h"

namespace brainfast {
namespace {

constexpr std::int64_t kLine = 16;        // elements that keep the scratch of two threads apart
constexpr std::int64_t kTaskGroups = 16;  // of the plan's tasks

// What the numbered buffers of a scratch hold.
enum Buffer { kLatent, kWork, kSums };

template <class T>
const EmbedKernels<T>& kernels_of(Isa isa) {
  if constexpr (std::is_same_v<T, double>) {
    return embed_kernels_portable_double();
  } else {
#if defined(BRAINFAST_X86_KERNELS)
    if (isa >= Isa::avx512 && isa != Isa::amx_emulated) return embed_kernels_avx512();
    if (isa == Isa::avx2) return embed_kernels_avx2();
#endif
    return embed_kernels_portable();
  }
}

const BFloatEmbedKernels* bfloat_kernels_of(Isa isa) {
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  if (isa == Isa::avx512bf16) return &bfloat_embed_kernels_avx512bf16();
#endif
#if defined(BRAINFAST_AMX_KERNELS)
  if (isa == Isa::amx) return &bfloat_embed_kernels_amx();
#endif
  return isa == Isa::amx_emulated ? &bfloat_embed_kernels_amx_emulated() : nullptr;
}

// Rows [N, count] -> [blocks of max_rows, padded count, rows of the block]; zeros pad a row.
template <class T>
void pack_rows(const T* from, std::int64_t rows, std::int64_t count, std::int64_t padded,
               std::int64_t max_rows, T* to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t block = row / max_rows * max_rows, size = std::min(max_rows, rows - block);
    T* const at = to + block * padded + row - block;
    for (std::int64_t i = 0; i < count; ++i) at[i * size] = from[row * count + i];
    for (std::int64_t i = count; i < padded; ++i) at[i * size] = T(0);
  }
}

// The part of a task that says which vertices it is about.
template <class Operand, class T>
void set_vertices(EmbedTask<Operand, T>& task, std::int64_t begin, std::int64_t vertices,
                  std::int64_t most, const T* bias, T* response) {
  task.vertices = std::min(most, vertices - begin);
  task.bias = bias ? bias + begin : nullptr;
  task.response = response + begin;
  task.response_stride = vertices;
}

}  // namespace

template <class T>
void vertex_embed_forward(const EmbedParameters<T>& parameters, std::int64_t images,
                          const T* latent, T* response, Isa isa) {
  if (images == 0 || parameters.vertices == 0) return;
  const auto pool = shared_pool();
  const EmbedKernels<T>& kernels = kernels_of<T>(isa);
  BorrowedScratch scratch(pool->shelf());
  constexpr std::int64_t kGroups = 4;
  const std::int64_t lanes = kernels.lanes, steps = parameters.latent;
  T* const packed = (*scratch).template room<T>(kLatent, images * steps);
  pack_rows(latent, images, steps, steps, kernels.max_rows, packed);
  const std::int64_t size = padded_to(kGroups * lanes * steps, kLine) + kLine;
  T* const work = (*scratch).template room<T>(kWork, size * pool->size());
  pool->run(pieces_of(parameters.vertices, kGroups * lanes), [&](std::int64_t index, int who) {
    const std::int64_t begin = index * kGroups * lanes;
    EmbedTask<T, T> task{};
    task.images = images;
    task.steps = steps;
    task.parts = 1;
    task.latent = packed;
    task.weight = work + who * size;
    set_vertices(task, begin, parameters.vertices, kGroups * lanes, parameters.bias, response);
    task.groups = pieces_of(task.vertices, lanes);
    for (std::int64_t group = 0; group < task.groups; ++group) {
      const std::int64_t row = begin + group * lanes;
      kernels.pack(parameters.weight + row * steps, steps,
                   std::min(lanes, parameters.vertices - row), steps,
                   work + who * size + group * lanes * steps);
    }
    kernels.embed(task);
  });
}

template void vertex_embed_forward(const EmbedParameters<float>&, std::int64_t, const float*,
                                   float*, Isa);
template void vertex_embed_forward(const EmbedParameters<double>&, std::int64_t, const double*,
                                   double*, Isa);

struct VertexEmbedPlan::State {
  template <class Operand, class Embed>
  void run(std::int64_t images, const Operand* packed, Embed embed, float* response,
           ThreadPool& pool) const;

  std::int64_t vertices, latent;
  Isa isa;
  Precision precision;
  const EmbedKernels<float>& kernels;
  const BFloatEmbedKernels* bfloat;  // null where float32 operands are multiplied
  OperandForm form;
  PackedPanels weight;
  std::vector<float> bias;
};

template <class Operand, class Embed>
void VertexEmbedPlan::State::run(std::int64_t images, const Operand* packed, Embed embed,
                                 float* response, ThreadPool& pool) const {
  const Panels<Operand> panels = weight.template panels<Operand>();
  const std::int64_t groups = pieces_of(vertices, form.lanes);
  pool.run(pieces_of(groups, kTaskGroups), [&](std::int64_t index, int) {
    const std::int64_t group = index * kTaskGroups;
    EmbedTask<Operand, float> task{};
    task.images = images;
    task.steps = form.depth(latent);
    task.parts = form.parts;
    task.latent = packed;
    task.weight = panels.data + group * panels.group_stride;
    task.groups = std::min(kTaskGroups, groups - group);
    set_vertices(task, group * form.lanes, vertices, kTaskGroups * form.lanes,
                 bias.empty() ? nullptr : bias.data(), response);
    embed(task);
  });
}

VertexEmbedPlan::VertexEmbedPlan(const EmbedParameters<float>& parameters, Isa isa,
                                 Precision precision) {
  const EmbedKernels<float>& kernels = kernels_of<float>(isa);
  const BFloatEmbedKernels* const bfloat = bfloat_kernels_of(isa);
  OperandForm form;
  form.lanes = kernels.lanes;
  if (bfloat) {
    form = {16, 2, bfloat->depth_step, bfloat->row_step, precision == Precision::bf16x3 ? 2 : 1};
  }
  const auto pool = shared_pool();
  PackedPanels weight(parameters.weight, parameters.vertices, parameters.latent, 0, form, precision,
                      *pool);
  state_ = std::make_unique<State>(State{parameters.vertices,
                                         parameters.latent,
                                         isa,
                                         precision,
                                         kernels,
                                         bfloat,
                                         form,
                                         std::move(weight),
                                         {}});
  if (parameters.bias) {
    state_->bias.assign(parameters.bias, parameters.bias + parameters.vertices);
  }
}

VertexEmbedPlan::~VertexEmbedPlan() = default;

void VertexEmbedPlan::run(std::int64_t images, const float* latent, float* response) const {
  if (images == 0 || state_->vertices == 0) return;
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  const OperandForm& form = state_->form;
  const std::int64_t steps = form.depth(state_->latent);
  const std::int64_t size = padded_to(images, form.row_step) * form.parts * steps;
  if (state_->bfloat) {
    auto* const packed = (*scratch).room<std::uint32_t>(kLatent, size);
    state_->bfloat->pack_latent(latent, images, state_->latent, 2 * steps, form.parts,
                                reinterpret_cast<std::uint16_t*>(packed));
    state_->run(images, packed, state_->bfloat->embed, response, *pool);
  } else {
    float* const packed = (*scratch).room<float>(kLatent, size);
    pack_rows(latent, images, steps, steps, state_->kernels.max_rows, packed);
    round_operands(state_->precision, size, packed, packed);
    state_->run(images, packed, state_->kernels.embed, response, *pool);
  }
}

// A task is some of the latent and reads its part of every weight; so no sum depends on threads.
void VertexEmbedPlan::adjoint(std::int64_t objectives, const float* grad_output,
                              float* latent) const {
  if (objectives == 0) return;
  constexpr std::int64_t kGroups = 8;
  const State& state = *state_;
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  const std::int64_t lanes = state.form.lanes, width = 2 * state.kernels.lanes;
  const std::int64_t rows = state.kernels.max_rows;
  const std::int64_t groups = pieces_of(state.vertices, lanes), padded = groups * lanes;
  float* const grads = (*scratch).room<float>(kLatent, objectives * padded);
  pack_rows(grad_output, objectives, state.vertices, padded, rows, grads);
  const std::int64_t panel = kGroups * lanes * width, steps = width * lanes;
  const std::int64_t size = panel + steps + padded_to(objectives * width, kLine);
  float* const work = (*scratch).room<float>(kWork, size * pool->size());
  pool->run(pieces_of(state.latent, width), [&](std::int64_t index, int who) {
    float* const weights = work + who * size;  // [kGroups * lanes, width]
    float* const widened = weights + panel;
    float* const sums = widened + steps;  // [O, width]
    std::fill(weights, sums + objectives * width, 0.0f);
    const std::int64_t begin = index * width, end = std::min(begin + width, state.latent);
    for (std::int64_t group = 0; group < groups; group += kGroups) {
      const std::int64_t count = std::min(kGroups, groups - group);
      for (std::int64_t i = 0; i < count; ++i) {
        state.weight.widen(group + i, begin, end, widened);
        state.kernels.unpack(widened, lanes, end - begin, weights + i * lanes * width, width);
      }
      for (std::int64_t row = 0; row < objectives; row += rows) {
        const std::int64_t some = std::min(rows, objectives - row);
        state.kernels.accumulate(grads + row * padded + group * lanes * some, weights, some,
                                 count * lanes, sums + row * width);
      }
    }
    for (std::int64_t row = 0; row < objectives; ++row) {
      std::copy_n(sums + row * width, end - begin, latent + row * state.latent + begin);
    }
  });
}

std::int64_t VertexEmbedPlan::vertices() const { return state_->vertices; }
std::int64_t VertexEmbedPlan::latent() const { return state_->latent; }
Isa VertexEmbedPlan::isa() const { return state_->isa; }
Precision VertexEmbedPlan::precision() const { return state_->precision; }
std::int64_t VertexEmbedPlan::bytes() const {
  return state_->weight.bytes() + static_cast<std::int64_t>(state_->bias.size() * sizeof(float));
}
std::int64_t VertexEmbedPlan::flops_per_image() const {
  return 2 * state_->vertices * state_->latent;
}

}  // namespace brainfast
