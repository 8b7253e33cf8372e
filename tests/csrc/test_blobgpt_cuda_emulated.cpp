// The CUDA kernels of BlobGPT's projection and embedding, compiled for the host and run by the
// thread-block emulator.
//
// What this cannot show, and a GPU has to: that the inline PTX of kernels/tensor_core.cuh does what
// its host versions do (cp.async with and without zeros, its groups, ldmatrix, mma.sync, cvt); the
// memory model, above all that the last block of a tile sees the sums of the others (__threadfence,
// the counter, __ldcg), since blocks run one after another here; launches, streams, occupancy,
// graphs and the device's limits; rounding that differs (fused multiply-add, and the order of sums
// inside a tensor core); anything of speed.
#include <cmath>
#include <cstdio>
#include <vector>

#include "device_buffer.h"
#include "expect.h"
#include "kernels/factor_projection.cu"
#include "kernels/vertex_embed.cu"
#include "naive_readout.h"

using namespace brainfast;

namespace {

constexpr Precision kPrecisions[] = {Precision::fp32, Precision::bf16x3, Precision::bf16};

// Another order of blocks and threads, copies at the last moment, another number of blocks.
template <class Call>
auto otherwise(Call&& call) {
  emulator::schedule = {true, 7, true};
  device::emulated_multiprocessors = 5;
  auto found = call();
  emulator::schedule = {};
  device::emulated_multiprocessors = 2;
  return found;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Numbers that bfloat16 holds, where the products are of bf16.
std::vector<float> numbers(std::int64_t count, unsigned seed, Precision precision) {
  auto found = random_numbers<float>(count, seed);
  if (precision == Precision::bf16) round_to_bfloat(found);
  return found;
}

struct Case {
  std::int64_t images, latent;
  std::vector<cuda::ProjectionLayerSizes> layers;
};

const std::vector<Case> kCases = {
    {1, 1, {{1, 1}}},
    {1, 130, {{70, 5}, {3, 130}}},  // two tiles, two chunks, two slices, parts of tokens
    {2, 20, {{9, 33}, {1, 3}}},
    {5, 17, {{17, 130}}},       // images side by side that are not there
    {37, 9, {{3, 7}, {5, 2}}},  // two units of groups
};

// Arguments of a case: filters, maps and tokens of every layer, then the bias.
struct Numbers {
  std::vector<std::vector<float>> filters, maps, tokens;
  std::vector<float> bias;

  Numbers(const Case& test, Precision precision) : bias(random_numbers<float>(test.latent, 5)) {
    unsigned seed = 10;
    for (const auto& [tokens_l, channels] : test.layers) {
      filters.push_back(numbers(test.latent * channels, ++seed, precision));
      maps.push_back(numbers(test.latent * tokens_l, ++seed, precision));
      tokens.push_back(numbers(test.images * tokens_l * channels, ++seed, precision));
    }
  }
};

std::vector<double> naive_latent(const Case& test, const Numbers& n) {
  std::vector<double> latent;
  for (std::int64_t b = 0; b < test.images; ++b) {
    for (std::int64_t k = 0; k < test.latent; ++k) {
      double sum = n.bias[k];
      for (std::size_t l = 0; l < test.layers.size(); ++l) {
        const auto [tokens, channels] = test.layers[l];
        for (std::int64_t t = 0; t < tokens; ++t) {
          double dot = 0;
          for (std::int64_t c = 0; c < channels; ++c) {
            dot += static_cast<double>(n.filters[l][k * channels + c]) *
                   n.tokens[l][(b * tokens + t) * channels + c];
          }
          sum += dot * n.maps[l][k * tokens + t];
        }
      }
      latent.push_back(sum);
    }
  }
  return latent;
}

cuda::ProjectionShape shape_of(const Case& test) { return {test.latent, test.layers}; }

cuda::ProjectionBatch batch_of(const Case& test, const Numbers& n) {
  cuda::ProjectionBatch batch{test.images, {}, cuda::Kind::float32};
  for (std::size_t l = 0; l < test.layers.size(); ++l) {
    const auto [tokens, channels] = test.layers[l];
    batch.layers.push_back({n.tokens[l].data(), {tokens * channels, channels, 1}, nullptr, {0, 0}});
  }
  return batch;
}

void pack(const Case& test, const Numbers& n, Precision precision, Buffer& packed) {
  cuda::ProjectionFactors factors{{}, {}, n.bias.data(), cuda::Kind::float32};
  for (const auto& part : n.filters) factors.filters.push_back(part.data());
  for (const auto& part : n.maps) factors.maps.push_back(part.data());
  cuda::pack_factors(shape_of(test), factors, precision, packed.memory(), {});
}

std::vector<float> project(const Case& test, const Numbers& n, Precision precision) {
  const cuda::ProjectionShape shape = shape_of(test);
  Buffer packed(cuda::factor_bytes(shape, precision));
  Buffer scratch(cuda::projection_bytes(shape, test.images, precision));
  pack(test, n, precision, packed);
  std::vector<float> latent(test.images * test.latent, NAN);
  const long before = emulator::launches;
  cuda::project(shape, precision, packed.memory(), batch_of(test, n), scratch.memory(),
                latent.data(), {});
  EXPECT(emulator::launches - before == 2);
  return latent;
}

void test_projection(const Case& test, Precision precision) {
  const Numbers n(test, precision);
  const auto found = project(test, n, precision);
  EXPECT(close(found, naive_latent(test, n), 2e-5));
  EXPECT(same_bits(found, otherwise([&] { return project(test, n, precision); })));
}

// grad_tokens, grad_filters and grad_maps, one after another.
std::vector<double> naive_gradients(const Case& test, const Numbers& n,
                                    const std::vector<float>& grad_output) {
  const auto [tokens, channels] = test.layers[0];
  const std::int64_t latent = test.latent;
  const std::int64_t filters_at = test.images * tokens * channels;
  const std::int64_t maps_at = filters_at + latent * channels;
  std::vector<double> grads(maps_at + latent * tokens);
  for (std::int64_t b = 0; b < test.images; ++b) {
    for (std::int64_t k = 0; k < latent; ++k) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double grad = grad_output[b * latent + k], map = n.maps[0][k * tokens + t];
        for (std::int64_t c = 0; c < channels; ++c) {
          const std::int64_t at = (b * tokens + t) * channels + c;
          const double filter = n.filters[0][k * channels + c], token = n.tokens[0][at];
          grads[at] += grad * map * filter;
          grads[filters_at + k * channels + c] += grad * map * token;
          grads[maps_at + k * tokens + t] += grad * filter * token;
        }
      }
    }
  }
  return grads;
}

std::vector<float> gradients(const Case& test, const Numbers& n,
                             const std::vector<float>& grad_output, Precision precision) {
  const cuda::ProjectionShape shape = shape_of(test);
  const auto [tokens, channels] = test.layers[0];
  Buffer packed(cuda::factor_bytes(shape, precision));
  Buffer scratch(cuda::projection_gradient_bytes(shape, test.images, precision));
  pack(test, n, precision, packed);
  const std::int64_t filters_at = test.images * tokens * channels;
  const std::int64_t maps_at = filters_at + test.latent * channels;
  std::vector<float> grads(maps_at + test.latent * tokens, NAN);
  float* const to = grads.data();
  cuda::differentiate_projection(shape, precision, packed.memory(), batch_of(test, n),
                                 grad_output.data(), scratch.memory(),
                                 {to, to + filters_at, to + maps_at}, {});
  return grads;
}

void test_gradients(Case test, Precision precision) {
  test.layers.resize(1);
  const Numbers n(test, precision);
  const auto grad_output = random_numbers<float>(test.images * test.latent, 99);
  const auto wanted = naive_gradients(test, n, grad_output);
  const auto found = gradients(test, n, grad_output, precision);
  const auto [tokens, channels] = test.layers[0];
  const std::int64_t ends[] = {0, test.images * tokens * channels,
                               test.images * tokens * channels + test.latent * channels,
                               static_cast<std::int64_t>(found.size())};
  for (int part = 0; part < 3; ++part) {
    const std::vector<float> some(found.begin() + ends[part], found.begin() + ends[part + 1]);
    const std::vector<double> same(wanted.begin() + ends[part], wanted.begin() + ends[part + 1]);
    // The gradient of the latent times the maps is rounded in bf16.
    EXPECT(close(some, same, precision == Precision::bf16 && part < 2 ? 6e-3 : 2e-5));
  }
  EXPECT(same_bits(found, otherwise([&] { return gradients(test, n, grad_output, precision); })));
}

struct EmbedCase {
  std::int64_t images;
  cuda::EmbedShape shape;
};

const EmbedCase kEmbedCases[] = {
    {1, {1, 1}}, {3, {65, 8}}, {17, {20, 130}}, {65, {70, 64}}, {129, {9, 72}}};

void test_embed(const EmbedCase& test, Precision precision) {
  const auto [vertices, latent] = test.shape;
  const auto weight = numbers(vertices * latent, 1, precision);
  const auto bias = random_numbers<float>(vertices, 2);
  const auto source = numbers(test.images * latent, 3, precision);
  std::vector<double> wanted;
  for (std::int64_t b = 0; b < test.images; ++b) {
    for (std::int64_t v = 0; v < vertices; ++v) {
      double sum = bias[v];
      for (std::int64_t k = 0; k < latent; ++k) {
        sum += static_cast<double>(weight[v * latent + k]) * source[b * latent + k];
      }
      wanted.push_back(sum);
    }
  }
  const cuda::EmbedBatch batch{test.images, source.data(), cuda::Kind::float32};
  const auto run = [&] {
    Buffer packed(cuda::embed_bytes(test.shape, precision));
    cuda::pack_embed(test.shape, {weight.data(), bias.data(), cuda::Kind::float32}, precision,
                     packed.memory(), {});
    std::vector<float> response(wanted.size(), NAN);
    const long before = emulator::launches;
    cuda::embed(test.shape, precision, packed.memory(), batch, response.data(), {});
    EXPECT(emulator::launches - before == 1);
    return response;
  };
  const auto found = run();
  EXPECT(close(found, wanted, 2e-5));
  EXPECT(same_bits(found, otherwise(run)));
  // The same without packing, where rows are whole 16 bytes.
  const auto narrow = as_bfloats(weight);
  const bool bf16 = precision == Precision::bf16;
  const cuda::EmbedWeight here{
      bf16 ? static_cast<const void*>(narrow.data()) : static_cast<const void*>(weight.data()),
      bias.data(), bf16 ? cuda::Kind::bfloat16 : cuda::Kind::float32};
  const bool in_place = precision != Precision::bf16x3 && latent % (bf16 ? 8 : 4) == 0;
  EXPECT(cuda::reads_in_place(test.shape, precision, here) == in_place);
  if (!in_place) return;
  const auto run_in_place = [&] {
    std::vector<float> response(wanted.size(), NAN);
    cuda::embed_in_place(test.shape, precision, here, batch, response.data(), {});
    return response;
  };
  EXPECT(same_bits(found, run_in_place()));
  EXPECT(same_bits(found, otherwise(run_in_place)));
}

void test_refusals() {
  const auto fp32 = Precision::fp32, bf16x3 = Precision::bf16x3;
  const std::int64_t much = std::int64_t{1} << 40;
  for (const cuda::ProjectionShape& wrong :
       {cuda::ProjectionShape{0, {{1, 1}}}, cuda::ProjectionShape{much, {{1, 1}}},
        cuda::ProjectionShape{3, {}}, cuda::ProjectionShape{3, {{0, 1}}},
        cuda::ProjectionShape{3, {{1, much}}},
        cuda::ProjectionShape{3, std::vector<cuda::ProjectionLayerSizes>(33, {1, 1})}}) {
    EXPECT(refused([&] { cuda::factor_bytes(wrong, fp32); }));
    EXPECT(refused([&] { cuda::projection_bytes(wrong, 1, fp32); }));
  }
  const cuda::ProjectionShape one{3, {{2, 4}}}, two{3, {{2, 4}, {2, 4}}},
      large{3, {{1 << 20, 1 << 20}}};
  EXPECT(refused([&] { cuda::projection_bytes(one, 0, fp32); }));
  EXPECT(refused([&] { cuda::projection_bytes(large, 8, fp32); }));
  EXPECT(refused([&] { cuda::projection_gradient_bytes(one, 1, bf16x3); }));
  EXPECT(refused([&] { cuda::projection_gradient_bytes(two, 1, fp32); }));
  for (const cuda::EmbedShape& wrong : {cuda::EmbedShape{0, 1}, cuda::EmbedShape{1, 0},
                                        cuda::EmbedShape{much, 1}, cuda::EmbedShape{1, much}}) {
    EXPECT(refused([&] { cuda::embed_bytes(wrong, fp32); }));
  }
  const cuda::EmbedShape shape{3, 4};
  Buffer memory(cuda::embed_bytes(shape, fp32));
  const cuda::Memory all = memory.memory();
  const auto run = [&](const cuda::Memory& packed, std::int64_t images) {
    cuda::embed(shape, fp32, packed, {images, nullptr, cuda::Kind::float32}, nullptr, {});
  };
  const long before = emulator::launches;
  EXPECT(refused([&] { run({all.data, all.bytes - 1}, 1); }));
  EXPECT(refused([&] { run({nullptr, all.bytes}, 1); }));
  EXPECT(refused([&] { run({static_cast<char*>(all.data) + 4, all.bytes}, 1); }));
  EXPECT(refused([&] { run(all, 0); }));
  EXPECT(emulator::launches == before);
}

}  // namespace

int main() {
  for (Precision precision : kPrecisions) {
    for (const Case& test : kCases) {
      test_projection(test, precision);
      if (precision != Precision::bf16x3) test_gradients(test, precision);
    }
    for (const EmbedCase& test : kEmbedCases) test_embed(test, precision);
  }
  test_refusals();
  std::puts("BlobGPT's kernels on emulated CUDA: passed");
}
