#include "factor_projection_cuda.h"

#include "cuda_host.h"
#include "factor_projection_forward.cuh"
#include "factor_projection_gradients.cuh"
#include "factor_projection_pack.cuh"

namespace brainfast::cuda {
namespace {

constexpr std::int64_t kEnoughUnits = 256;  // of work, to fill a device
constexpr int kGroupsOfUnit = 4;            // of images: enough to pay for a tile's filters

void check_projection(const ProjectionShape& shape) {
  constexpr std::int64_t kMost = std::int64_t{1} << 20;
  check_between("latent", shape.latent, kMost);
  check_between("layers", static_cast<std::int64_t>(shape.layers.size()), kMostProjectionLayers);
  for (const ProjectionLayerSizes& layer : shape.layers) {
    check_between("tokens", layer.tokens, kMost);
    check_between("channels", layer.channels, kMost);
  }
}

Projection carve_factors(const ProjectionShape& shape, Precision precision, Carver& carve) {
  check_projection(shape);
  Projection p{};
  p.latent = static_cast<int>(shape.latent);
  p.layers = static_cast<int>(shape.layers.size());
  p.tiles = static_cast<int>(parts_of(shape.latent, kTile));
  p.bias = carve.take<float>(shape.latent);
  for (int l = 0; l < p.layers; ++l) {
    const ProjectionLayerSizes& sizes = shape.layers[l];
    PackedLayer& layer = p.layer[l];
    layer.tokens = static_cast<int>(sizes.tokens);
    layer.channels = static_cast<int>(sizes.channels);
    layer.slices = static_cast<int>(parts_of(sizes.channels, slice_channels(precision)));
    layer.padded_tokens = static_cast<int>(parts_of(sizes.tokens, kMapPadding) * kMapPadding);
    layer.filters =
        carve.take<unsigned char>(std::int64_t{layer.slices} * (shape.latent + 1) * kRowBytes);
    layer.maps = carve.take<unsigned char>(std::int64_t{p.tiles} * layer.padded_tokens * kTile *
                                           map_size(precision));
  }
  return p;
}

// The factors as they lie in packed memory.
Projection factors_at(const ProjectionShape& shape, Precision precision, const Memory& packed) {
  Carver carve(packed.data);
  const Projection p = carve_factors(shape, precision, carve);
  check_memory(packed, carve.used(), "packed factors");
  return p;
}

// As many images side by side as there are, at most kTrainingImages.
int shift_for(std::int64_t images) {
  int shift = 0;
  while (1 << shift < std::min<std::int64_t>(images, kTrainingImages)) ++shift;
  return shift;
}

void carve_rows(std::int64_t images, int shift, Projection& p, Carver& carve) {
  check_between("images", images, 1 << 20);
  p.images = static_cast<int>(images);
  p.shift = shift;
  p.groups = static_cast<int>(parts_of(images, 1 << shift));
  for (int l = 0; l < p.layers; ++l) {
    PackedLayer& layer = p.layer[l];
    const std::int64_t columns = std::int64_t{layer.tokens} << shift;
    const std::int64_t most = std::int64_t{1} << 40;  // of bytes: more than a device has
    check(columns <= most / kRowBytes / p.groups / layer.slices && columns <= 1 << 30, "tokens",
          "at most 2^40 bytes of packed tokens", std::to_string(images) + " images");
    layer.row_count = p.groups * columns + 1;
    layer.rows = carve.take<unsigned char>(layer.slices * layer.row_count * kRowBytes);
  }
}

// Cuts the work of the products into units: a slice of channels of one layer each, and parts of its
// tokens where that is not enough to fill a device.
void cut_units(Precision precision, Projection& p) {
  p.unit_groups = std::min(p.groups, kGroupsOfUnit);
  p.group_units = static_cast<int>(parts_of(p.groups, p.unit_groups));
  std::int64_t units = 0;
  for (int l = 0; l < p.layers; ++l) {
    units += std::int64_t{p.layer[l].slices} * p.tiles * p.group_units;
  }
  std::int64_t pieces = 0;
  for (int l = 0; l < p.layers; ++l) {
    PackedLayer& layer = p.layer[l];
    const std::int64_t chunks =
        parts_of(std::int64_t{layer.tokens} << p.shift, projection_columns(precision));
    layer.part_chunks =
        static_cast<int>(parts_of(chunks, std::min(chunks, parts_of(kEnoughUnits, units))));
    layer.parts = static_cast<int>(parts_of(chunks, layer.part_chunks));
    layer.first_piece = static_cast<int>(pieces);
    pieces += std::int64_t{layer.slices} * layer.parts;
    check_between("pieces of work", pieces, 1 << 20);
  }
  p.pieces = static_cast<int>(pieces);
  check_between("units of work", std::int64_t{p.pieces} * p.tiles * p.group_units, 1 << 30);
}

void carve_sums(Projection& p, Carver& carve) {
  const std::int64_t images = std::int64_t{p.groups} << p.shift;
  p.partial = carve.take<float>(p.pieces * images * p.tiles * kTile);
  p.counters = carve.take<int>(std::int64_t{p.group_units} * p.tiles);
}

void check_batch(const Projection& p, const ProjectionBatch& batch) {
  check(batch.layers.size() == static_cast<std::size_t>(p.layers), "tokens",
        ("those of " + std::to_string(p.layers) + " layers").c_str(),
        std::to_string(batch.layers.size()));
}

void pack_batch(const Projection& p, const ProjectionBatch& batch, Precision precision,
                device::Stream stream) {
  PackArguments a{};
  a.layers = p.layers;
  a.images = p.images;
  a.groups = p.groups;
  a.shift = p.shift;
  a.kind = batch.kind;
  a.counters = p.counters;
  a.counter_count = p.counters ? p.group_units * p.tiles : 0;
  std::int64_t blocks = 0;
  for (int l = 0; l < p.layers; ++l) {
    const PackedLayer& layer = p.layer[l];
    const ProjectionTokens& from = batch.layers[l];
    a.layer[l] = {
        layer.tokens,   layer.channels,        layer.slices,          static_cast<int>(blocks),
        from.local,     from.stride[0],        from.stride[1],        from.stride[2],
        from.global,    from.global_stride[0], from.global_stride[1], layer.rows,
        layer.row_count};
    blocks += (std::int64_t{layer.slices} * p.groups << p.shift) * kRowPairs;
    blocks_for("tokens", blocks, 1);
  }
  const auto run = [&](void (*kernel)(PackArguments)) {
    device::launch("factor_projection tokens", kernel, static_cast<int>(blocks), kThreads, 0,
                   stream, a);
  };
  switch (precision) {
    case Precision::bf16:
      return run(pack_projection_tokens<Precision::bf16>);
    case Precision::bf16x3:
      return run(pack_projection_tokens<Precision::bf16x3>);
    case Precision::fp32:
      return run(pack_projection_tokens<Precision::fp32>);
  }
}

Projection carve_batch(const ProjectionShape& shape, std::int64_t images, Precision precision,
                       Projection p, Carver& carve) {
  check_projection(shape);
  carve_rows(images, shift_for(images), p, carve);
  cut_units(precision, p);
  carve_sums(p, carve);
  return p;
}

// What backward needs besides the packed factors.
struct GradientWork {
  Projection projection;
  int pieces;      // of grad_filters
  float* partial;  // [pieces,K,C]
};

GradientWork carve_projection_gradients(std::int64_t images, Precision precision, Projection p,
                                        Carver& carve) {
  check(precision != Precision::bf16x3, "precision", "fp32 or bf16", name_of(precision));
  check(p.layers == 1, "layers", "1", std::to_string(p.layers));
  carve_rows(images, shift_for(kTrainingImages), p, carve);
  const PackedLayer& layer = p.layer[0];
  const std::int64_t chunks = parts_of(layer.tokens, kBlockTokens) * p.groups;
  const std::int64_t wanted = parts_of(kEnoughUnits, std::int64_t{p.tiles} * layer.slices);
  check_between("units of work", chunks * layer.slices, 1 << 30);
  const auto pieces = static_cast<int>(std::min({wanted, chunks, std::int64_t{64}}));
  return {p, pieces, carve.take<float>(std::int64_t{pieces} * p.latent * layer.channels)};
}

template <Precision kPrecision, class Products>
void differentiate(const GradientWork& work, const float* grad_output,
                   const ProjectionDeviceGradients& gradients, device::Stream stream) {
  const Projection& p = work.projection;
  const PackedLayer& layer = p.layer[0];
  ProjectionGradientArguments a{p, grad_output, work.pieces, gradients.maps};
  if (gradients.maps) {
    launch_resident("map gradients", differentiate_maps<kPrecision, Products>,
                    parts_of(layer.tokens, kBlockTokens) * p.tiles, kThreads, kMapGradientBytes,
                    stream, a);
  }
  if (gradients.tokens) {
    a.grad = gradients.tokens;
    launch_resident("token gradients", differentiate_projected_tokens<kPrecision>,
                    parts_of(layer.tokens, kTileTokens) * p.groups * layer.slices, kThreads,
                    kOuterBytes, stream, a);
  }
  if (!gradients.filters) return;
  a.grad = work.pieces > 1 ? work.partial : gradients.filters;
  launch_resident("filter gradients", differentiate_filters<kPrecision>,
                  std::int64_t{p.tiles} * layer.slices * work.pieces, kThreads, kOuterBytes, stream,
                  a);
  if (work.pieces == 1) return;
  const std::int64_t count = std::int64_t{p.latent} * layer.channels;
  device::launch("filter gradients", add_filter_pieces, blocks_for("filters", count, kPackThreads),
                 kPackThreads, 0, stream, work.partial, work.pieces, count, gradients.filters);
}

}  // namespace

std::int64_t factor_bytes(const ProjectionShape& shape, Precision precision) {
  Carver carve(nullptr);
  carve_factors(shape, precision, carve);
  return carve.used();
}

std::int64_t projection_bytes(const ProjectionShape& shape, std::int64_t images,
                              Precision precision) {
  Carver factors(nullptr), carve(nullptr);
  carve_batch(shape, images, precision, carve_factors(shape, precision, factors), carve);
  return carve.used();
}

std::int64_t projection_gradient_bytes(const ProjectionShape& shape, std::int64_t images,
                                       Precision precision) {
  Carver factors(nullptr), carve(nullptr);
  carve_projection_gradients(images, precision, carve_factors(shape, precision, factors), carve);
  return carve.used();
}

void pack_factors(const ProjectionShape& shape, const ProjectionFactors& factors,
                  Precision precision, const Memory& packed, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  const Projection p = factors_at(shape, precision, packed);
  const auto layers = static_cast<std::size_t>(p.layers);
  check(factors.filters.size() == layers && factors.maps.size() == layers, "filters and maps",
        ("those of " + std::to_string(layers) + " layers").c_str(),
        std::to_string(factors.filters.size()) + " and " + std::to_string(factors.maps.size()));
  device::launch("factor_projection bias", pack_bias, blocks_for("latent", p.latent, kPackThreads),
                 kPackThreads, 0, queue.stream, factors.bias, p.bias, p.latent);
  for (int l = 0; l < p.layers; ++l) {
    const PackedLayer& layer = p.layer[l];
    const std::int64_t pieces = std::int64_t{layer.slices} * (p.latent + 1) * kRowPieces;
    device::launch("factor_projection filters", pack_filters,
                   blocks_for("filters", pieces, kPackThreads), kPackThreads, 0, queue.stream,
                   layer, p.latent, factors.filters[l], factors.kind, precision);
    device::launch("factor_projection maps", pack_maps,
                   blocks_for("maps", std::int64_t{p.tiles} * layer.padded_tokens, 1), kTile, 0,
                   queue.stream, layer, p.latent, factors.maps[l], factors.kind, precision);
  }
}

void project(const ProjectionShape& shape, Precision precision, const Memory& packed,
             const ProjectionBatch& batch, const Memory& scratch, float* latent,
             const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  Carver carve(scratch.data);
  Projection p =
      carve_batch(shape, batch.images, precision, factors_at(shape, precision, packed), carve);
  check_memory(scratch, carve.used(), "scratch");
  check_batch(p, batch);
  p.latents = latent;
  pack_batch(p, batch, precision, queue.stream);
  const auto run = [&](void (*kernel)(Projection)) {
    launch_resident("factor_projection", kernel, std::int64_t{p.pieces} * p.tiles * p.group_units,
                    kThreads, kProjectionBytes, queue.stream, p);
  };
  switch (precision) {
    case Precision::bf16:
      return run(project_tokens<Precision::bf16, TensorTile<Precision::bf16>>);
    case Precision::bf16x3:
      return run(project_tokens<Precision::bf16x3, TensorTile<Precision::bf16x3>>);
    case Precision::fp32:
      return run(project_tokens<Precision::fp32, ScalarTile>);
  }
}

void differentiate_projection(const ProjectionShape& shape, Precision precision,
                              const Memory& packed, const ProjectionBatch& batch,
                              const float* grad_output, const Memory& scratch,
                              const ProjectionDeviceGradients& gradients, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  Carver carve(scratch.data);
  const GradientWork work = carve_projection_gradients(batch.images, precision,
                                                       factors_at(shape, precision, packed), carve);
  check_memory(scratch, carve.used(), "scratch");
  check_batch(work.projection, batch);
  if (gradients.filters || gradients.maps) {
    pack_batch(work.projection, batch, precision, queue.stream);
  }
  if (precision == Precision::bf16) {
    differentiate<Precision::bf16, TensorTile<Precision::bf16>>(work, grad_output, gradients,
                                                                queue.stream);
  } else {
    differentiate<Precision::fp32, ScalarTile>(work, grad_output, gradients, queue.stream);
  }
}

}  // namespace brainfast::cuda
