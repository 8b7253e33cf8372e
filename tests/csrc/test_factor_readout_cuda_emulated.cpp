// The CUDA kernels of the readout, compiled for the host and run by the thread-block emulator.
//
// What this cannot show, and a GPU has to: that the inline PTX of kernels/tensor_core.cuh does what
// its host versions do (cp.async and its groups, ldmatrix, mma.sync, cvt); the memory model (a
// missing __syncthreads shows here only where some order of threads gives other results; nothing
// shows between blocks); launches, streams, occupancy, graphs and the device's limits; rounding
// that differs (fused multiply-add, and the order of sums inside a tensor core); anything of speed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "device_buffer.h"
#include "expect.h"
#include "kernels/factor_readout.cu"
#include "naive_readout.h"

using namespace brainfast;

namespace {

enum class Points { scattered, borders, together };

struct Case {
  std::int64_t images;
  ReadoutShape shape;  // V L D H W align_corners
  Points points = Points::scattered;
};

const std::vector<Case> kCases = {
    {1, {1, 1, 1, 1, 1, true}},
    {2, {17, 3, 130, 2, 2, true}},                      // slices of channels, with a tail
    {9, {15, 1, 5, 2, 3, false}},                       // two groups of images
    {1, {130, 13, 33, 1, 2, false}},                    // one image: a term for each column
    {4, {60, 2, 66, 2, 2, false}},                      // four images side by side
    {12, {20, 35, 3, 2, 2, false}},                     // windows of selectors, blocks of layers
    {37, {9, 2, 7, 2, 1, false}},                       // a tile's groups of images in two units
    {2, {300, 2, 5, 16, 16, false}, Points::together},  // tiles and chunks of one cell
    {2, {49, 3, 9, 4, 4, false}, Points::borders},
    {2, {49, 3, 9, 4, 4, true}, Points::borders},
};

// For bf16, tokens and weights that are exact in it: products are then those of float32.
Arguments<float> arguments_of(const Case& test, Precision precision) {
  auto arguments = random_arguments<float>(test.shape, test.images);
  for (std::size_t i = 0; i < arguments.space.size(); ++i) {
    const auto side = static_cast<int>(i % 2 ? i / 14 : i / 2 % 7);
    float& coordinate = arguments.space[i];
    if (test.points == Points::borders) coordinate = static_cast<float>(side - 3) * 0.375f;
    if (test.points == Points::together) coordinate = std::clamp(coordinate, -2.0f, 2.0f) * 0.02f;
  }
  if (precision == Precision::bf16) {
    for (auto* part : {&arguments.local, &arguments.global, &arguments.weight}) {
      round_to_bfloat(*part);
    }
  }
  return arguments;
}

// All that a call computes: the response, then the gradients in the op's order.
struct Found {
  std::vector<float> response;
  Arguments<float> grads;
};

Found run(const Case& test, const Arguments<float>& a, const std::vector<float>& grad_output,
          Precision precision, bool narrow) {
  const ReadoutShape& shape = test.shape;
  const auto local = as_bfloats(a.local), global = as_bfloats(a.global),
             weight = as_bfloats(a.weight);
  const cuda::Kind kind = narrow ? cuda::Kind::bfloat16 : cuda::Kind::float32;
  const auto pick = [&](const std::vector<unsigned short>& few, const std::vector<float>& many) {
    return narrow ? static_cast<const void*>(few.data()) : static_cast<const void*>(many.data());
  };
  const cuda::Parameters parameters{a.space.data(),         a.layer.data(), a.scale.data(),
                                    pick(weight, a.weight), a.bias.data(),  kind};
  const cuda::Tokens tokens{test.images, pick(local, a.local), pick(global, a.global), kind};
  Buffer packed(cuda::parameter_bytes(shape, precision));
  Buffer scratch(cuda::token_bytes(shape, test.images, precision));
  Found found{std::vector<float>(test.images * shape.vertices, NAN),
              Arguments<float>(shape, test.images)};
  cuda::pack_parameters(shape, parameters, precision, packed.memory(), {});
  const long before = emulator::launches;
  cuda::forward(shape, precision, packed.memory(), tokens, scratch.memory(), found.response.data(),
                {});
  EXPECT(emulator::launches - before == 2);
  if (precision == Precision::bf16x3) return found;
  found.grads.each([](std::vector<float>& part) { std::fill(part.begin(), part.end(), NAN); });
  Buffer room(cuda::gradient_bytes(shape, test.images, precision));
  cuda::backward(shape, precision, packed.memory(), tokens, grad_output.data(), room.memory(),
                 found.grads.gradients(), {});
  return found;
}

bool same_bits(Found& a, Found& b) {
  std::vector<float> all[2] = {a.response, b.response};
  a.grads.each([&](auto& part) { all[0].insert(all[0].end(), part.begin(), part.end()); });
  b.grads.each([&](auto& part) { all[1].insert(all[1].end(), part.begin(), part.end()); });
  return all[0].size() == all[1].size() &&
         std::memcmp(all[0].data(), all[1].data(), all[0].size() * sizeof(float)) == 0;
}

void test_against_loops(const Case& test, Precision precision) {
  const ReadoutShape& shape = test.shape;
  const auto arguments = arguments_of(test, precision);
  const auto grad_output = random_numbers<float>(test.images * shape.vertices, 99);
  Arguments<double> wanted(shape, test.images);
  const auto response = naive(shape, test.images, arguments, grad_output, wanted);
  Found found = run(test, arguments, grad_output, precision, false);
  EXPECT(close(found.response, response, 2e-5));
  if (precision != Precision::bf16x3) {
    // Selectors times the gradient of y are rounded in bf16.
    const double rounded = precision == Precision::bf16 ? 6e-3 : 2e-5;
    EXPECT(close(found.grads.local, wanted.local, rounded));
    EXPECT(close(found.grads.global, wanted.global, rounded));
    EXPECT(close(found.grads.weight, wanted.weight, rounded));
    EXPECT(close(found.grads.space, wanted.space, 2e-5));
    EXPECT(close(found.grads.layer, wanted.layer, 2e-5));
    EXPECT(close(found.grads.scale, wanted.scale, 2e-5));
    EXPECT(close(found.grads.bias, wanted.bias, 2e-5));
  }
  // Another order of blocks and threads, copies at the last moment, another number of blocks.
  emulator::schedule = {true, 7, true};
  device::emulated_multiprocessors = 5;
  Found again = run(test, arguments, grad_output, precision, precision == Precision::bf16);
  emulator::schedule = {};
  device::emulated_multiprocessors = 2;
  EXPECT(same_bits(found, again));
}

// Rounding of tokens and weights that are not exact in bfloat16.
void test_rounding() {
  const Case test{2, {40, 5, 70, 2, 2, false}};
  const auto arguments = random_arguments<float>(test.shape, test.images);
  Arguments<double> unused(test.shape, test.images);
  const auto response = naive(test.shape, test.images, arguments, {}, unused);
  const auto error = [&](Precision precision) {
    const std::vector<float> grad_output(response.size());
    const Found found = run(test, arguments, grad_output, precision, false);
    double squares = 0, all = 0;
    for (std::size_t i = 0; i < response.size(); ++i) {
      squares += std::pow(found.response[i] - response[i], 2);
      all += std::pow(response[i], 2);
    }
    return std::sqrt(squares / all);
  };
  EXPECT(error(Precision::fp32) < 1e-6);
  EXPECT(error(Precision::bf16x3) < 1e-5);
  const double rough = error(Precision::bf16);
  EXPECT(rough > 1e-4 && rough < 5e-3);
}

// Many vertices: several blocks of the sort, and two digits where there are many cells.
void test_order(std::int64_t side) {
  const ReadoutShape shape{2500, 1, 1, side, side, false};
  const auto a = random_arguments<float>(shape, 1);
  Buffer memory(cuda::parameter_bytes(shape, Precision::fp32));
  cuda::pack_parameters(shape,
                        {a.space.data(), a.layer.data(), a.scale.data(), a.weight.data(),
                         a.bias.data(), cuda::Kind::float32},
                        Precision::fp32, memory.memory(), {});
  const cuda::Vertices p =
      cuda::carve_parameters(shape, Precision::fp32, memory.memory().data).vertices;
  const auto side_of = [&](float coordinate) {
    const double pixel = ((coordinate + 1.0) * static_cast<double>(side) - 1) / 2;
    return std::clamp<std::int64_t>(static_cast<std::int64_t>(std::floor(
                                        std::clamp(pixel, -1.0, static_cast<double>(side)))),
                                    -1, side - 1) +
           1;
  };
  std::vector<std::int64_t> cells;
  for (std::int64_t v = 0; v < shape.vertices; ++v) {
    cells.push_back(side_of(a.space[2 * v + 1]) * (side + 1) + side_of(a.space[2 * v]));
  }
  std::vector<int> order(shape.vertices);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int i, int j) { return cells[i] < cells[j]; });
  EXPECT(std::equal(order.begin(), order.end(), p.order));
  int tile = 0;
  for (std::int64_t i = 0, start = 0; i < shape.vertices; ++i) {
    EXPECT(p.cell[i] == cells[order[i]]);
    if (i == 0 || p.cell[i] != p.cell[i - 1]) start = i;
    if ((i - start) % cuda::kTile == 0) {
      const cuda::TileRecord& found = p.tiles[tile++];
      const auto end = std::upper_bound(p.cell, p.cell + shape.vertices, p.cell[i]) - p.cell;
      EXPECT(found.begin == i && found.cell == p.cell[i]);
      EXPECT(found.count == std::min<std::int64_t>(cuda::kTile, end - i));
    }
  }
  EXPECT(*p.tile_count == tile);
}

// A point that is not finite concerns its own vertex alone.
void test_not_finite() {
  const Case test{1, {20, 2, 3, 2, 2, false}};
  auto arguments = arguments_of(test, Precision::fp32);
  const std::vector<float> grad_output(20);
  const Found sound = run(test, arguments, grad_output, Precision::fp32, false);
  for (float wrong : {NAN, INFINITY, -INFINITY}) {
    arguments.space[11] = wrong;
    const Found found = run(test, arguments, grad_output, Precision::fp32, false);
    for (int v = 0; v < 20; ++v) {
      EXPECT(v == 5 ? std::isnan(found.response[v]) : found.response[v] == sound.response[v]);
    }
  }
}

void test_refusals() {
  const ReadoutShape shape{3, 2, 4, 2, 2, false};
  const auto bf16 = Precision::bf16;
  for (int size = 0; size < 5; ++size) {
    for (std::int64_t wrong : {std::int64_t{0}, std::int64_t{1} << 40}) {
      ReadoutShape bad = shape;
      std::int64_t* const sizes[] = {&bad.vertices, &bad.layers, &bad.channels, &bad.height,
                                     &bad.width};
      *sizes[size] = wrong;
      EXPECT(refused([&] { cuda::parameter_bytes(bad, bf16); }));
      EXPECT(refused([&] { cuda::token_bytes(bad, 1, bf16); }));
    }
  }
  EXPECT(refused([&] { cuda::token_bytes(shape, 0, bf16); }));
  EXPECT(refused([&] { cuda::token_bytes({3, 1 << 20, 1 << 20, 1, 1, false}, 8, bf16); }));
  EXPECT(refused([&] { cuda::gradient_bytes(shape, 1, Precision::bf16x3); }));
  Buffer memory(cuda::parameter_bytes(shape, bf16));
  const auto pack = [&](cuda::Memory to) { cuda::pack_parameters(shape, {}, bf16, to, {}); };
  const cuda::Memory all = memory.memory();
  EXPECT(refused([&] { pack({all.data, all.bytes - 1}); }));
  EXPECT(refused([&] { pack({nullptr, all.bytes}); }));
  EXPECT(refused([&] { pack({static_cast<char*>(all.data) + 4, all.bytes}); }));
}

}  // namespace

int main() {
  for (const Case& test : kCases) {
    for (Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16}) {
      test_against_loops(test, precision);
    }
  }
  test_rounding();
  test_order(7);
  test_order(20);
  test_order(40);  // more cells than threads that cut them
  test_not_finite();
  test_refusals();
  std::puts("factor_readout on emulated CUDA: passed");
}
