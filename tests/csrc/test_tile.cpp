// Tiles in plain C++ against their definition, and what they refuse.
#define BRAINFAST_ISA_NAMESPACE test_tile
#include "kernels/tile.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "expect.h"

using namespace brainfast::test_tile;

namespace {

float number(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float number;
  std::memcpy(&number, &wide, sizeof number);
  return number;
}

struct Sizes {
  int m, n, k;  // rows, columns, pairs along the sum
};

TileConfig config_of(const Sizes& sizes) {
  TileConfig config{};
  config.palette = 1;
  const auto set = [&](int tile, int rows, int bytes) {
    config.rows[tile] = static_cast<std::uint8_t>(rows);
    config.row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  };
  set(0, sizes.m, sizes.n * 4);
  set(4, sizes.m, sizes.k * 4);
  set(6, sizes.k, sizes.n * 4);
  return config;
}

std::vector<std::uint16_t> random_bfloat16(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> sign(0, 1), exponent(120, 132), mantissa(0, 127);
  std::vector<std::uint16_t> numbers(count);
  for (auto& bits : numbers) {
    bits = static_cast<std::uint16_t>(sign(generator) << 15 | exponent(generator) << 7 |
                                      mantissa(generator));
  }
  return numbers;
}

// Memory is exactly as large as the rows and strides reach: a sanitizer sees more.
void test_dot(const Sizes& sizes, int slack) {
  const int a_stride = 2 * sizes.k + 2 * slack, b_stride = 2 * sizes.n + 4 * slack;
  const int c_stride = sizes.n + slack;
  const auto a = random_bfloat16((sizes.m - 1) * a_stride + 2 * sizes.k, 1);
  const auto b = random_bfloat16((sizes.k - 1) * b_stride + 2 * sizes.n, 2);
  std::vector<float> c((sizes.m - 1) * c_stride + sizes.n, 0.5f), wanted = c;
  Tiles tiles(config_of(sizes));
  tiles.load<0>(c.data(), c_stride * 4);
  tiles.load<4>(a.data(), a_stride * 2);
  tiles.load<6>(b.data(), b_stride * 2);
  for (int repeat = 0; repeat < 2; ++repeat) {
    tiles.dot<0, 4, 6>();
    for (int m = 0; m < sizes.m; ++m) {
      for (int n = 0; n < sizes.n; ++n) {
        float even = 0, odd = 0;
        for (int k = 0; k < sizes.k; ++k) {
          even += number(a[m * a_stride + 2 * k]) * number(b[k * b_stride + 2 * n]);
          odd += number(a[m * a_stride + 2 * k + 1]) * number(b[k * b_stride + 2 * n + 1]);
        }
        wanted[m * c_stride + n] += even + odd;
      }
    }
  }
  tiles.store<0>(c.data(), c_stride * 4);
  EXPECT(c == wanted);  // what lies between the rows included
  tiles.zero<0>();
  tiles.store<0>(c.data(), c_stride * 4);
  for (int i = 0; i < static_cast<int>(c.size()); ++i) {
    EXPECT(c[i] == (i % c_stride < sizes.n ? 0 : 0.5f));
  }
}

// What makes the processor raise an exception ends the program here.
template <class F>
void expect_refusal(F&& f) {
  std::fflush(stderr);
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    f();
    _exit(0);
  }
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

void test_refusals() {
  const auto with = [](auto change) {
    return [change] {
      TileConfig config = whole_tiles();
      change(config);
      Tiles tiles(config);
      tiles.zero<0>();
      tiles.dot<0, 4, 6>();
    };
  };
  expect_refusal(with([](TileConfig& c) { c.palette = 0; }));
  expect_refusal(with([](TileConfig& c) { c.rows[3] = 17; }));
  expect_refusal(with([](TileConfig& c) { c.row_bytes[3] = 65; }));
  expect_refusal(with([](TileConfig& c) { c.rows[8] = 1, c.row_bytes[8] = 4; }));
  expect_refusal(with([](TileConfig& c) { c.reserved[13] = 1; }));
  expect_refusal(with([](TileConfig& c) { c.rows[0] = 0, c.row_bytes[0] = 0; }));
  expect_refusal(with([](TileConfig& c) { c.rows[0] = 15; }));
  expect_refusal(with([](TileConfig& c) { c.rows[6] = 15; }));
  expect_refusal(with([](TileConfig& c) { c.row_bytes[6] = 60; }));
}

}  // namespace

int main() {
  for (const Sizes& sizes : {Sizes{16, 16, 16}, {1, 1, 1}, {12, 16, 16}, {3, 5, 7}, {16, 2, 9}}) {
    for (int slack : {0, 1, 3}) test_dot(sizes, slack);
  }
  test_refusals();
  std::puts("tile: passed");
}
