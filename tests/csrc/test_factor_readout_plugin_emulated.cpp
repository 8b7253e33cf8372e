// The readout's kernel for TensorRT, compiled for the host and run by the thread-block emulator;
// see test_factor_readout_cuda_emulated.cpp for what this cannot show.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <vector>

#include "expect.h"
#include "kernels/factor_readout_plugin.cu"
#include "naive_readout.h"

namespace {

namespace plugin = brainfast::plugin;

struct Case {
  std::int64_t images;
  ReadoutShape shape;  // V L D H W align_corners
  int block_vertices;
  float spread = 1;  // of the sampling points
};

const std::vector<Case> kCases = {
    {1, {1, 1, 1, 1, 1, false}, 16},
    {2, {17, 3, 130, 2, 2, true}, 16},          // two slices of channels
    {9, {40, 2, 31, 2, 3, false}, 32},          // two groups of images; several cells a block
    {1, {180, 7, 33, 2, 2, false}, 64, 0.02f},  // a cell in two blocks of threads
    {2, {20, 13, 16, 4, 1, false}, 48},         // three panels, the last one partly filled
    {1, {30, 1, 5, 16, 16, true}, 128},
};

// The arrays of the exported node, packed without regard to how the package packs them.
template <class Index>
struct Node {
  std::vector<float> weight, coefficient;
  std::vector<Index> cell, corners, slots, vertices;

  Node(const Case& test, const Arguments<float>& a) {
    const ReadoutShape& s = test.shape;
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::int64_t>> cells;
    for (std::int64_t v = 0; v < s.vertices; ++v) cells[corner_of(s, a, v)].push_back(v);
    slots.resize(s.vertices);
    for (const auto& [corner, members] : cells) {
      for (int c = 0; c < 4; ++c) {
        const auto x = corner.first + c % 2, y = corner.second + c / 2;
        const bool inside = x >= 0 && x < s.width && y >= 0 && y < s.height;
        corners.push_back(static_cast<Index>(inside ? y * s.width + x : s.pixels()));
      }
      for (std::size_t from = 0; from < members.size(); from += test.block_vertices) {
        cell.push_back(static_cast<Index>(corners.size() / 4 - 1));
        add_block(test, a, members, from);
      }
    }
  }

 private:
  static std::pair<double, double> point(const ReadoutShape& s, const Arguments<float>& a,
                                         std::int64_t v) {
    const auto place = [&](float at, std::int64_t size) {
      const double pixel = s.align_corners ? (at + 1.0) / 2 * static_cast<double>(size - 1)
                                           : ((at + 1.0) * static_cast<double>(size) - 1) / 2;
      return std::clamp(pixel, -1.0, static_cast<double>(size));
    };
    return {place(a.space[2 * v], s.width), place(a.space[2 * v + 1], s.height)};
  }

  static std::pair<std::int64_t, std::int64_t> corner_of(const ReadoutShape& s,
                                                         const Arguments<float>& a,
                                                         std::int64_t v) {
    const auto [x, y] = point(s, a, v);
    return {static_cast<std::int64_t>(std::floor(x)), static_cast<std::int64_t>(std::floor(y))};
  }

  void add_block(const Case& test, const Arguments<float>& a,
                 const std::vector<std::int64_t>& members, std::size_t from) {
    const ReadoutShape& s = test.shape;
    const std::int64_t size = test.block_vertices;
    const std::size_t weights = weight.size(), factors = coefficient.size();
    weight.resize(weights + s.channels * size);
    coefficient.resize(factors + 5 * s.layers * size);
    for (std::int64_t n = 0; n < size; ++n) {
      const bool real = from + n < members.size();
      const std::int64_t v = real ? members[from + n] : s.vertices;
      if (real) slots[v] = static_cast<Index>(vertices.size());
      vertices.push_back(static_cast<Index>(v));
      if (!real) continue;
      for (std::int64_t d = 0; d < s.channels; ++d) {
        weight[weights + d * size + n] =
            a.weight[v * s.channels + d] / static_cast<float>(s.channels);
      }
      const auto [x, y] = point(s, a, v);
      const double right = x - std::floor(x), down = y - std::floor(y);
      for (int c = 0; c < 5; ++c) {
        const double corner = (c % 2 ? right : 1 - right) * (c / 2 ? down : 1 - down);
        const double share = c < 4 ? corner * (1 - a.scale[v]) : a.scale[v];
        for (std::int64_t l = 0; l < s.layers; ++l) {
          coefficient[factors + (c * s.layers + l) * size + n] =
              static_cast<float>(share * a.layer[v * s.layers + l]);
        }
      }
    }
  }
};

template <class Index>
std::vector<float> run(const Case& test, const Arguments<float>& a, auto kernel) {
  const ReadoutShape& s = test.shape;
  const Node<Index> node(test, a);
  const int blocks = static_cast<int>(node.cell.size());
  std::vector<float> response(test.images * s.vertices, NAN);
  const std::int64_t rows = std::int64_t{blocks} * test.block_vertices;
  const std::int64_t grid = (rows + plugin::kRows - 1) / plugin::kRows *
                            ((test.images + plugin::kImages - 1) / plugin::kImages);
  emulator::launch(kernel, static_cast<int>(grid), plugin::kThreads, plugin::kSharedBytes,
                   a.local.data(), a.global.data(), node.weight.data(), node.coefficient.data(),
                   node.cell.data(), node.corners.data(), node.slots.data(), node.vertices.data(),
                   a.bias.data(), static_cast<int>(test.images), static_cast<int>(s.layers),
                   static_cast<int>(s.channels), static_cast<int>(s.pixels()), blocks,
                   test.block_vertices, static_cast<int>(s.vertices), response.data());
  return response;
}

Arguments<float> arguments_of(const Case& test) {
  auto arguments = random_arguments<float>(test.shape, test.images);
  for (float& coordinate : arguments.space) {
    if (test.spread < 1) coordinate = std::clamp(coordinate, -2.0f, 2.0f) * test.spread;
  }
  return arguments;
}

void test_against_loops(const Case& test) {
  const auto arguments = arguments_of(test);
  Arguments<double> unused(test.shape, test.images);
  const auto wanted = naive(test.shape, test.images, arguments, {}, unused);
  const auto found = run<std::int64_t>(test, arguments, brainfast_factor_readout_i64);
  double largest = 0, error = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(wanted[i]));
    const double difference = std::abs(found[i] - wanted[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  EXPECT(error <= 2e-5 * (largest + 1e-3));
  // Another order of blocks and threads, and the other type of indices.
  emulator::schedule = {true, 7, true};
  const auto again = run<std::int32_t>(test, arguments, brainfast_factor_readout_i32);
  emulator::schedule = {};
  EXPECT(std::equal(found.begin(), found.end(), again.begin()));
}

// A response is NaN where what it reads is, and nowhere else.
void test_not_finite() {
  const Case test{2, {30, 2, 5, 2, 2, false}, 16};
  auto arguments = arguments_of(test);
  const auto sound = run<std::int64_t>(test, arguments, brainfast_factor_readout_i64);
  arguments.global[2 * 5] = NAN;  // of the second image
  const auto found = run<std::int64_t>(test, arguments, brainfast_factor_readout_i64);
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT(i < 30 ? found[i] == sound[i] : std::isnan(found[i]));
  }
}

}  // namespace

int main() {
  for (const Case& test : kCases) test_against_loops(test);
  test_not_finite();
  std::puts("factor_readout plugin on emulated CUDA: passed");
}
