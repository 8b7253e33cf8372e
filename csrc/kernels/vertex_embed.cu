#include "vertex_embed_cuda.h"

#include "cuda_host.h"
#include "vertex_embed_forward.cuh"

namespace brainfast::cuda {
namespace {

void check_embed(const EmbedShape& shape) {
  check_between("vertices", shape.vertices, 1 << 28);
  check_between("latent", shape.latent, 1 << 20);
}

EmbedArguments embed_arguments(const EmbedShape& shape, Precision precision) {
  check_embed(shape);
  EmbedArguments a{};
  a.vertices = static_cast<int>(shape.vertices);
  a.latent = static_cast<int>(shape.latent);
  a.slices = static_cast<int>(parts_of(shape.latent, slice_channels(precision)));
  return a;
}

struct PackedEmbed {
  unsigned char* weight;
  float* bias;
};

PackedEmbed carve_embed(const EmbedArguments& a, Carver& carve) {
  const std::int64_t vertices = a.vertices;
  auto* const weight = carve.take<unsigned char>(vertices * a.slices * kRowData);
  return {weight, carve.take<float>(vertices)};
}

PackedEmbed packed_embed(const EmbedArguments& a, const Memory& packed) {
  Carver carve(packed.data);
  const PackedEmbed found = carve_embed(a, carve);
  check_memory(packed, carve.used(), "packed weights");
  return found;
}

template <int kImages>
void launch_embed(const EmbedArguments& a, Precision precision, device::Stream stream) {
  const std::int64_t units = parts_of(a.vertices, kEmbedTile) * parts_of(a.images, kImages);
  const auto run = [&](void (*kernel)(EmbedArguments)) {
    launch_resident("vertex_embed", kernel, units, kThreads, 2 * kEmbedTurn<kImages>, stream, a);
  };
  switch (precision) {
    case Precision::bf16:
      return run(embed_vertices<Precision::bf16, kImages>);
    case Precision::bf16x3:
      return run(embed_vertices<Precision::bf16x3, kImages>);
    case Precision::fp32:
      return run(embed_vertices<Precision::fp32, kImages>);
  }
}

void launch_embed(EmbedArguments a, Precision precision, const EmbedBatch& batch, float* response,
                  device::Stream stream) {
  check_between("images", batch.images, 1 << 20);
  a.images = static_cast<int>(batch.images);
  a.latents = batch.latent;
  a.kind = batch.kind;
  a.response = response;
  if (a.images <= kFewImages) return launch_embed<kFewImages>(a, precision, stream);
  launch_embed<kManyImages>(a, precision, stream);
}

}  // namespace

std::int64_t embed_bytes(const EmbedShape& shape, Precision precision) {
  Carver carve(nullptr);
  carve_embed(embed_arguments(shape, precision), carve);
  return carve.used();
}

void pack_embed(const EmbedShape& shape, const EmbedWeight& weight, Precision precision,
                const Memory& packed, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  const EmbedArguments a = embed_arguments(shape, precision);
  const PackedEmbed to = packed_embed(a, packed);
  const std::int64_t pieces = shape.vertices * a.slices * kRowPieces;
  device::launch("vertex_embed weight", pack_embed_weight,
                 blocks_for("weight", pieces, kPackThreads), kPackThreads, 0, queue.stream, a,
                 weight.weight, weight.kind, precision, to.weight);
  device::launch("vertex_embed bias", copy_embed_bias,
                 blocks_for("bias", shape.vertices, kPackThreads), kPackThreads, 0, queue.stream,
                 weight.bias, to.bias, a.vertices);
}

void embed(const EmbedShape& shape, Precision precision, const Memory& packed,
           const EmbedBatch& batch, float* response, const Queue& queue) {
  const device::DeviceGuard guard(queue.device);
  EmbedArguments a = embed_arguments(shape, precision);
  const PackedEmbed from = packed_embed(a, packed);
  a.row_bytes = a.slices * kRowData;
  a.pitch = a.row_bytes;
  a.weight = from.weight;
  a.bias = from.bias;
  launch_embed(a, precision, batch, response, queue.stream);
}

bool reads_in_place(const EmbedShape& shape, Precision precision, const EmbedWeight& weight) {
  const bool narrow = weight.kind == Kind::bfloat16;
  if (precision != (narrow ? Precision::bf16 : Precision::fp32)) return false;
  return shape.latent * (narrow ? 2 : 4) % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(weight.weight) % 16 == 0;
}

void embed_in_place(const EmbedShape& shape, Precision precision, const EmbedWeight& weight,
                    const EmbedBatch& batch, float* response, const Queue& queue) {
  check(reads_in_place(shape, precision, weight), "weight",
        "aligned rows of whole 16 bytes in the precision of the products", "others");
  const device::DeviceGuard guard(queue.device);
  EmbedArguments a = embed_arguments(shape, precision);
  a.row_bytes = a.latent * (precision == Precision::bf16 ? 2 : 4);
  a.pitch = a.row_bytes;
  a.weight = static_cast<const unsigned char*>(weight.weight);
  a.bias = weight.bias;
  launch_embed(a, precision, batch, response, queue.stream);
}

}  // namespace brainfast::cuda
