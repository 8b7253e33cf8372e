#include "factor_projection.h"

#include <algorithm>

#include "factor_projection_driver.h"

namespace brainfast {
namespace {

constexpr std::int64_t kLine = 16;  // elements that keep the scratch of two threads apart

// [K, steps] -> panels [groups, steps, lanes].
template <class T>
void pack_panels(const ProjectionKernels<T>& kernels, const T* from, std::int64_t latent,
                 std::int64_t steps, T* to, ThreadPool& pool) {
  const std::int64_t lanes = kernels.lanes;
  pool.run(pieces_of(latent, lanes), [&](std::int64_t group, int) {
    const std::int64_t row = group * lanes;
    kernels.pack(from + row * steps, steps, std::min(lanes, latent - row), steps, to + row * steps);
  });
}

template <class T>
void unpack_panels(const ProjectionKernels<T>& kernels, const T* from, std::int64_t latent,
                   std::int64_t steps, T* to, ThreadPool& pool) {
  const std::int64_t lanes = kernels.lanes;
  pool.run(pieces_of(latent, lanes), [&](std::int64_t group, int) {
    const std::int64_t row = group * lanes;
    kernels.unpack(from + row * steps, std::min(lanes, latent - row), steps, to + row * steps,
                   steps);
  });
}

template <class T>
void factor_gradients(const ProjectionKernels<T>& kernels, const ProjectionInputs<T>& inputs,
                      const T* grad_output, const ProjectionGradients<T>& gradients,
                      Scratch& scratch, ThreadPool& pool) {
  const std::int64_t groups = pieces_of(inputs.latent, kernels.lanes);
  const std::int64_t padded = groups * kernels.lanes;
  const std::int64_t filters = padded * inputs.channels, maps = padded * inputs.tokens;
  T* const panels = scratch.room<T>(0, 2 * filters + 2 * maps);
  T* const grads = scratch.room<T>(1, padded * inputs.images);
  const std::int64_t size = kernels.factor_scratch() + kLine;
  T* const work = scratch.room<T>(2, size * pool.size());
  pack_panels(kernels, inputs.filters, inputs.latent, inputs.channels, panels, pool);
  pack_panels(kernels, inputs.maps, inputs.latent, inputs.tokens, panels + filters, pool);
  T* const found = panels + filters + maps;
  std::fill_n(found, filters + maps, T(0));
  for (std::int64_t b = 0; b < inputs.images; ++b) {
    for (std::int64_t k = 0; k < padded; ++k) {
      const std::int64_t at = k / kernels.lanes * inputs.images + b;
      grads[at * kernels.lanes + k % kernels.lanes] =
          k < inputs.latent ? grad_output[b * inputs.latent + k] : T(0);
    }
  }
  const std::int64_t step = groups_of_task(groups, 1, pool.size());
  pool.run(pieces_of(groups, step), [&](std::int64_t index, int participant) {
    ProjectionFactorTask<T> task{};
    task.images = inputs.images;
    task.tokens = inputs.tokens;
    task.channels = inputs.channels;
    task.group_begin = index * step;
    task.group_end = std::min(task.group_begin + step, groups);
    task.source = inputs.source;
    task.grad_output = grads;
    task.filters = panels;
    task.maps = panels + filters;
    task.grad_filters = gradients.filters ? found : nullptr;
    task.grad_maps = gradients.maps ? found + filters : nullptr;
    task.scratch = work + participant * size;
    kernels.factor_gradients(task);
  });
  if (gradients.filters) {
    unpack_panels(kernels, found, inputs.latent, inputs.channels, gradients.filters, pool);
  }
  if (gradients.maps) {
    unpack_panels(kernels, found + filters, inputs.latent, inputs.tokens, gradients.maps, pool);
  }
}

}  // namespace

template <>
const ProjectionKernels<double>& projection_kernels_of(Isa) {
  return projection_kernels_portable_double();
}

template <>
const ProjectionKernels<float>& projection_kernels_of(Isa isa) {
#if defined(BRAINFAST_X86_KERNELS)
  if (isa >= Isa::avx512 && isa != Isa::amx_emulated) return projection_kernels_avx512();
  if (isa == Isa::avx2) return projection_kernels_avx2();
#endif
  (void)isa;
  return projection_kernels_portable();
}

template <class T>
void project_token_gradients(const ProjectionKernels<T>& kernels, std::int64_t images,
                             std::int64_t tokens, std::int64_t channels, std::int64_t latent,
                             const T* grad_output, const T* filters, const T* maps, T* grad_tokens,
                             Scratch& scratch, ThreadPool& pool) {
  const std::int64_t lanes = kernels.lanes, blocks = pieces_of(channels, lanes);
  T* const panels = scratch.room<T>(0, blocks * latent * lanes);
  pool.run(blocks, [&](std::int64_t block, int) {
    const std::int64_t begin = block * lanes, count = std::min(lanes, channels - begin);
    T* to = panels + block * latent * lanes;
    for (std::int64_t k = 0; k < latent; ++k, to += lanes) {
      std::copy_n(filters + k * channels + begin, count, to);
      std::fill(to + count, to + lanes, T(0));
    }
  });
  std::int64_t rows = 8 * kernels.max_rows;
  while (rows > kernels.max_rows && images * pieces_of(tokens, rows) < 3 * pool.size()) rows /= 2;
  const std::int64_t parts = pieces_of(tokens, rows);
  const std::int64_t size = kernels.token_scratch(latent, rows) + kLine;
  T* const work = scratch.room<T>(1, size * pool.size());
  pool.run(images * parts, [&](std::int64_t index, int participant) {
    const std::int64_t image = index / parts;
    ProjectionTokenTask<T> task{};
    task.latent = latent;
    task.channels = channels;
    task.map_stride = tokens;
    task.row_begin = index % parts * rows;
    task.row_end = std::min(task.row_begin + rows, tokens);
    task.grad_output = grad_output + image * latent;
    task.maps = maps;
    task.filters = panels;
    task.tokens = grad_tokens + image * tokens * channels;
    task.scratch = work + participant * size;
    kernels.token_gradients(task);
  });
}

template <class T>
void factor_projection_forward(const ProjectionInputs<T>& inputs, T* latent, Isa isa) {
  const auto pool = shared_pool();
  const ProjectionKernels<T>& kernels = projection_kernels_of<T>(isa);
  const std::int64_t padded = padded_to(inputs.latent, kernels.lanes);
  BorrowedScratch scratch(pool->shelf());
  T* const filters = (*scratch).room<T>(0, padded * inputs.channels);
  T* const maps = (*scratch).room<T>(1, padded * inputs.tokens);
  OperandForm form;
  form.lanes = kernels.lanes;
  const std::int64_t image_size = inputs.tokens * inputs.channels;
  const std::int64_t block =
      images_at_a_time(image_size * sizeof(T), inputs.latent, kernels.lanes, pool->size());
  T* const sums = (*scratch).room<T>(2, std::min(block, inputs.images) * padded);
  if (inputs.images == 0 || inputs.latent == 0) return;
  pack_panels(kernels, inputs.filters, inputs.latent, inputs.channels, filters, *pool);
  pack_panels(kernels, inputs.maps, inputs.latent, inputs.tokens, maps, *pool);
  const ProjectionLayerView<T> layer{inputs.tokens,
                                     inputs.channels,
                                     {filters, inputs.channels * kernels.lanes, 0},
                                     {maps, inputs.tokens * kernels.lanes, 0}};
  for (std::int64_t begin = 0; begin < inputs.images; begin += block) {
    const T* const tokens = inputs.source + begin * image_size;
    const TokenMatrix<T> matrix{tokens, inputs.tokens, inputs.channels, false, 0};
    const ProjectionPiece<T> piece = piece_of(matrix, form, layer, tokens);
    project_images<T, T>(&piece, 1, 1, std::min(block, inputs.images - begin), inputs.latent,
                         kernels.lanes, nullptr, kernels.project, sums,
                         latent + begin * inputs.latent, *pool);
  }
}

template <class T>
void factor_projection_backward(const ProjectionInputs<T>& inputs, const T* grad_output,
                                const ProjectionGradients<T>& gradients, Isa isa) {
  const auto pool = shared_pool();
  const ProjectionKernels<T>& kernels = projection_kernels_of<T>(isa);
  BorrowedScratch scratch(pool->shelf());
  if (gradients.filters || gradients.maps) {
    factor_gradients(kernels, inputs, grad_output, gradients, *scratch, *pool);
  }
  if (gradients.tokens) {
    project_token_gradients(kernels, inputs.images, inputs.tokens, inputs.channels, inputs.latent,
                            grad_output, inputs.filters, inputs.maps, gradients.tokens, *scratch,
                            *pool);
  }
}

template void project_token_gradients(const ProjectionKernels<float>&, std::int64_t, std::int64_t,
                                      std::int64_t, std::int64_t, const float*, const float*,
                                      const float*, float*, Scratch&, ThreadPool&);
template void factor_projection_forward(const ProjectionInputs<float>&, float*, Isa);
template void factor_projection_forward(const ProjectionInputs<double>&, double*, Isa);
template void factor_projection_backward(const ProjectionInputs<float>&, const float*,
                                         const ProjectionGradients<float>&, Isa);
template void factor_projection_backward(const ProjectionInputs<double>&, const double*,
                                         const ProjectionGradients<double>&, Isa);

}  // namespace brainfast
