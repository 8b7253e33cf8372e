#include "factor_readout_cuda.h"

#include <algorithm>
#include <string>

#include "cuda_host.h"
#include "factor_readout_forward.cuh"
#include "factor_readout_gradients.cuh"
#include "factor_readout_pack.cuh"
#include "factor_readout_selector_gradients.cuh"

namespace brainfast::cuda {
namespace {

constexpr int kUnitGroups = 4;  // of images: enough to pay for a tile's weights

std::int64_t most_tiles(const ReadoutShape& shape) {
  const std::int64_t cells = (shape.height + 1) * (shape.width + 1);
  return shape.vertices / kTile + std::min(cells, shape.vertices);
}

// What sorting needs besides the order itself.
struct SortMemory {
  int* keys;    // [V]
  int* values;  // [V]
  int* counts;  // [blocks,kDigits]
};

struct Packed {
  Vertices vertices;
  SortMemory sort;
  std::int64_t bytes;
};

void check_shape(const ReadoutShape& shape) {
  constexpr std::int64_t kMost = std::int64_t{1} << 20;
  check_between("vertices", shape.vertices, std::int64_t{1} << 28);
  check_between("layers", shape.layers, kMost);
  check_between("channels", shape.channels, kMost);
  check_between("height", shape.height, kMost);
  check_between("width", shape.width, kMost);
  check_between("pixels", shape.pixels(), kMost);
}

Packed carve_parameters(const ReadoutShape& shape, Precision precision, void* data) {
  check_shape(shape);
  Carver carve(data);
  Vertices p{};
  p.vertices = static_cast<int>(shape.vertices);
  p.layers = static_cast<int>(shape.layers);
  p.channels = static_cast<int>(shape.channels);
  p.height = static_cast<int>(shape.height);
  p.width = static_cast<int>(shape.width);
  p.slices = static_cast<int>(parts_of(shape.channels, slice_channels(precision)));
  p.align_corners = shape.align_corners;
  const std::int64_t vertices = shape.vertices;
  p.order = carve.take<int>(vertices);
  p.cell = carve.take<int>(vertices);
  p.cell_begin = carve.take<int>(p.cells() + 1);
  p.tiles = carve.take<TileRecord>(most_tiles(shape));
  p.tile_count = carve.take<int>(1);
  p.coefficient = carve.take<float>(kSlots * vertices);
  p.layer = carve.take<float>(shape.layers * vertices);
  p.fraction = carve.take<float>(2 * vertices);
  p.slope = carve.take<float>(2 * vertices);
  p.scale = carve.take<float>(vertices);
  p.bias = carve.take<float>(vertices);
  p.weight = carve.take<unsigned char>(p.slices * (vertices + 1) * kRowBytes);
  SortMemory sort{};
  sort.keys = carve.take<int>(vertices);
  sort.values = carve.take<int>(vertices);
  sort.counts = carve.take<int>(parts_of(vertices, kSortThreads) * kDigits);
  return {p, sort, carve.used()};
}

// As many images side by side as there are, at most kTrainingImages.
int lanes_shift(std::int64_t images) {
  int shift = 0;
  while (1 << shift < std::min<std::int64_t>(images, kTrainingImages)) ++shift;
  return shift;
}

TokenRows carve_tokens(const ReadoutShape& shape, std::int64_t images, Precision precision,
                       int shift, Carver& carve) {
  check_shape(shape);
  check(images >= 1 && images <= 1 << 20, "images", "1 to 2^20", std::to_string(images));
  TokenRows x{};
  x.images = static_cast<int>(images);
  x.shift = shift;
  x.groups = static_cast<int>(parts_of(images, 1 << shift));
  const std::int64_t slices = parts_of(shape.channels, slice_channels(precision));
  const std::int64_t most = std::int64_t{1} << 40;  // of bytes: more than a device has
  check(shape.layers * (shape.pixels() + 1) <= most / kRowBytes / (images + 8) / slices, "tokens",
        "at most 2^40 bytes of packed tokens", std::to_string(images) + " images");
  x.rows = ((x.groups * (shape.pixels() + 1) * shape.layers) << shift) + 1;
  x.data = carve.take<unsigned char>(slices * x.rows * kRowBytes);
  return x;
}

void sort_vertices(const Packed& packed, const float* space, device::Stream stream) {
  const Vertices& p = packed.vertices;
  int passes = 1;
  while (p.cells() > 1 << kDigitBits * passes) ++passes;
  // Each pass goes from one pair of arrays to the other; the last ends in the vertices' own.
  int* keys[2] = {p.cell, packed.sort.keys};
  int* values[2] = {p.order, packed.sort.values};
  int from = passes % 2;
  device::launch("locate_vertices", locate_vertices,
                 blocks_for("vertices", p.vertices, kPackThreads), kPackThreads, 0, stream, p,
                 space, keys[from], values[from]);
  const int blocks = blocks_for("vertices", p.vertices, kSortThreads);
  for (int pass = 0; pass < passes; ++pass, from = 1 - from) {
    const int shift = kDigitBits * pass;
    device::launch("count_digits", count_digits, blocks, kSortThreads, kDigits * sizeof(int),
                   stream, keys[from], p.vertices, shift, packed.sort.counts);
    device::launch("scatter_digits", scatter_digits, blocks, kSortThreads, kScatterBytes, stream,
                   keys[from], values[from], p.vertices, shift, packed.sort.counts, keys[1 - from],
                   values[1 - from]);
  }
  device::launch("cut_tiles", cut_tiles, 1, kSortThreads, kSortThreads * sizeof(int), stream, p);
}

void pack(const Vertices& p, const TokenRows& x, const Tokens& tokens, Precision precision,
          device::Stream stream) {
  const std::int64_t blocks = (std::int64_t{p.slices} * x.groups << x.shift) * p.layers * kRowPairs;
  device::launch("pack_tokens", pack_tokens, blocks_for("tokens", blocks, 1), kThreads, 0, stream,
                 p, x, tokens.local, tokens.global, tokens.kind, precision);
}

// What backward needs besides the packed parameters.
struct GradientMemory {
  TokenRows tokens;
  Pieces pieces;
  float* grad_output;  // [groups*kTrainingImages,V]
  float* partial;      // [pixels*local+global,groups,L,kTrainingImages,D]
};

GradientMemory carve_gradients(const ReadoutShape& shape, std::int64_t images, Precision precision,
                               Carver& carve) {
  check(precision != Precision::bf16x3, "precision", "fp32 or bf16", name_of(precision));
  int shift = 0;
  while (1 << shift < kTrainingImages) ++shift;
  GradientMemory memory{};
  memory.tokens = carve_tokens(shape, images, precision, shift, carve);
  // Enough units of work to fill a device, and no more memory than that asks for.
  constexpr std::int64_t kUnits = 256, kMostPieces = 64;
  const std::int64_t groups = memory.tokens.groups;
  const auto pieces = [&](std::int64_t tokens) {
    return static_cast<int>(
        std::clamp<std::int64_t>(parts_of(kUnits, tokens * groups), 1, kMostPieces));
  };
  memory.pieces = {pieces(shape.pixels()), pieces(1)};
  const std::int64_t tokens = shape.pixels() * memory.pieces.local + memory.pieces.global;
  memory.grad_output = carve.take<float>(groups * kTrainingImages * shape.vertices);
  memory.partial =
      carve.take<float>(tokens * groups * shape.layers * kTrainingImages * shape.channels);
  return memory;
}

template <Precision kPrecision, class Products>
void differentiate(const ReadoutShape& shape, const Vertices& p, const GradientMemory& memory,
                   const ReadoutGradients<float>& gradients, device::Stream stream) {
  const TokenRows& x = memory.tokens;
  if (gradients.space || gradients.layer || gradients.scale) {
    launch_resident("selector gradients", differentiate_selectors<Products>, most_tiles(shape),
                    kThreads, kSelectorBytes, stream,
                    SelectorArguments{p, x, memory.grad_output, gradients.space, gradients.layer,
                                      gradients.scale});
  }
  if (gradients.weight) {
    launch_resident("weight gradients", differentiate_weight<kPrecision>,
                    most_tiles(shape) * p.slices, kThreads, kForwardBytes, stream,
                    WeightArguments{p, x, memory.grad_output, gradients.weight});
  }
  if (!gradients.of_tokens()) return;
  const TokenGradientArguments arguments{p, memory.pieces, x.groups, memory.grad_output,
                                         memory.partial};
  const std::int64_t tokens = shape.pixels() * memory.pieces.local + memory.pieces.global;
  const std::int64_t blocks = parts_of(shape.layers, kLayerBlock);
  launch_resident("token gradients", differentiate_tokens<kPrecision>,
                  tokens * x.groups * blocks * p.slices, kThreads, kTokenGradientBytes, stream,
                  arguments);
  const std::int64_t sums = std::int64_t{x.images} * p.layers * (p.pixels() + 1);
  device::launch("token gradients", add_pieces, blocks_for("tokens", sums, 1), kThreads, 0, stream,
                 arguments, gradients.local, gradients.global);
}

}  // namespace

std::int64_t parameter_bytes(const ReadoutShape& shape, Precision precision) {
  return carve_parameters(shape, precision, nullptr).bytes;
}

std::int64_t token_bytes(const ReadoutShape& shape, std::int64_t images, Precision precision) {
  Carver carve(nullptr);
  carve_tokens(shape, images, precision, lanes_shift(images), carve);
  return carve.used();
}

void pack_parameters(const ReadoutShape& shape, const Parameters& parameters, Precision precision,
                     const Memory& memory, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  const Packed packed = carve_parameters(shape, precision, memory.data);
  check_memory(memory, packed.bytes, "packed parameters");
  const Vertices& p = packed.vertices;
  sort_vertices(packed, parameters.space, queue.stream);
  device::launch("pack_vertices", pack_vertices, blocks_for("vertices", p.vertices, kPackThreads),
                 kPackThreads, 0, queue.stream, p, parameters.space, parameters.layer,
                 parameters.scale, parameters.bias);
  const std::int64_t pieces = std::int64_t{p.slices} * (p.vertices + 1) * kRowPieces;
  device::launch("pack_weight", pack_weight, blocks_for("weight", pieces, kPackThreads),
                 kPackThreads, 0, queue.stream, p, parameters.weight, parameters.weight_kind,
                 precision);
}

void forward(const ReadoutShape& shape, Precision precision, const Memory& memory,
             const Tokens& tokens, const Memory& scratch, float* output, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  const Packed packed = carve_parameters(shape, precision, memory.data);
  check_memory(memory, packed.bytes, "packed parameters");
  Carver carve(scratch.data);
  const TokenRows x =
      carve_tokens(shape, tokens.images, precision, lanes_shift(tokens.images), carve);
  check_memory(scratch, carve.used(), "scratch");
  const Vertices& p = packed.vertices;
  pack(p, x, tokens, precision, queue.stream);
  const ForwardArguments arguments{p, x, static_cast<int>(parts_of(x.groups, kUnitGroups)), output};
  const std::int64_t units = most_tiles(shape) * arguments.parts;
  const auto run = [&](void (*kernel)(ForwardArguments)) {
    launch_resident("factor_readout_forward", kernel, units, kThreads, kForwardBytes, queue.stream,
                    arguments);
  };
  switch (precision) {
    case Precision::bf16:
      return run(answer_tiles<TensorTile<Precision::bf16>>);
    case Precision::bf16x3:
      return run(answer_tiles<TensorTile<Precision::bf16x3>>);
    case Precision::fp32:
      return run(answer_tiles<ScalarTile>);
  }
}

std::int64_t gradient_bytes(const ReadoutShape& shape, std::int64_t images, Precision precision) {
  Carver carve(nullptr);
  carve_gradients(shape, images, precision, carve);
  return carve.used();
}

void backward(const ReadoutShape& shape, Precision precision, const Memory& memory,
              const Tokens& tokens, const float* grad_output, const Memory& scratch,
              const ReadoutGradients<float>& gradients, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  const Packed packed = carve_parameters(shape, precision, memory.data);
  check_memory(memory, packed.bytes, "packed parameters");
  Carver carve(scratch.data);
  const GradientMemory found = carve_gradients(shape, tokens.images, precision, carve);
  check_memory(scratch, carve.used(), "scratch");
  const Vertices& p = packed.vertices;
  device::launch("grad_output", pack_grad_output, blocks_for("vertices", p.vertices, kPackThreads),
                 kPackThreads, 0, queue.stream, p, found.tokens, grad_output, found.grad_output,
                 gradients.bias);
  if (gradients.of_vertices()) pack(p, found.tokens, tokens, precision, queue.stream);
  if (precision == Precision::bf16) {
    differentiate<Precision::bf16, TensorTile<Precision::bf16>>(shape, p, found, gradients,
                                                                queue.stream);
  } else {
    differentiate<Precision::fp32, ScalarTile>(shape, p, found, gradients, queue.stream);
  }
}

}  // namespace brainfast::cuda
