// Matrix tiles, up to 16 rows of 64 bytes, in two forms with one interface: AMX's own, and plain
// C++ that any machine compiles, which refuses what the processor would.
//
// dot<d, a, b>: tile d [M,N] float32 += tile a [M,K,2] bfloat16 x tile b [K,N,2] bfloat16, the even
// and the odd products of a row summed apart and then added (Intel's TDPBF16PS).
#pragma once

#include <cstdint>

#if defined(__AMX_BF16__)
#include <immintrin.h>
#else
#include <cstdio>
#include <cstdlib>
#include <cstring>
#endif

#ifndef BRAINFAST_ISA_NAMESPACE
#error "name the namespace of this instruction set first"
#endif

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

constexpr int kTiles = 8;
constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row

// As LDTILECFG reads it.
struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

inline TileConfig whole_tiles() {
  TileConfig config{};
  config.palette = 1;
  for (int tile = 0; tile < kTiles; ++tile) {
    config.rows[tile] = kTileRows;
    config.row_bytes[tile] = kTileBytes;
  }
  return config;
}

#if defined(__AMX_BF16__)

class Tiles {
 public:
  explicit Tiles(const TileConfig& config) {
    // GCC 12 does not see that the instruction reads the structure and may drop what fills it.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }

// The intrinsics take the numbers of tiles as literals only.
#define BRAINFAST_EACH_TILE(n, f) \
  if constexpr (n == 0) f(0);     \
  if constexpr (n == 1) f(1);     \
  if constexpr (n == 2) f(2);     \
  if constexpr (n == 3) f(3);     \
  if constexpr (n == 4) f(4);     \
  if constexpr (n == 5) f(5);     \
  if constexpr (n == 6) f(6);     \
  if constexpr (n == 7) f(7)

  template <int t>
  void zero() {
#define BRAINFAST_TILE_DO(n) _tile_zero(n)
    BRAINFAST_EACH_TILE(t, BRAINFAST_TILE_DO);
#undef BRAINFAST_TILE_DO
  }

  template <int t>
  void load(const void* from, std::int64_t stride) {
    asm volatile("" : : : "memory");  // the intrinsic does not say that it reads
#define BRAINFAST_TILE_DO(n) _tile_loadd(n, from, stride)
    BRAINFAST_EACH_TILE(t, BRAINFAST_TILE_DO);
#undef BRAINFAST_TILE_DO
  }

  template <int t>
  void store(void* to, std::int64_t stride) {
#define BRAINFAST_TILE_DO(n) _tile_stored(n, to, stride)
    BRAINFAST_EACH_TILE(t, BRAINFAST_TILE_DO);
#undef BRAINFAST_TILE_DO
    asm volatile("" : : : "memory");
  }

  // Sums in tiles 0..3, tokens in 4 and 5, weights in 6 and 7.
  template <int d, int a, int b>
  void dot() {
    static_assert(d >= 0 && d < 4 && (a == 4 || a == 5) && (b == 6 || b == 7));
#define BRAINFAST_TILE_DO(n)           \
  if constexpr (a == 4 && b == 6)      \
    _tile_dpbf16ps(n, 4, 6);           \
  else if constexpr (a == 4 && b == 7) \
    _tile_dpbf16ps(n, 4, 7);           \
  else if constexpr (a == 5 && b == 6) \
    _tile_dpbf16ps(n, 5, 6);           \
  else                                 \
    _tile_dpbf16ps(n, 5, 7)
    if constexpr (d == 0) {
      BRAINFAST_TILE_DO(0);
    }
    if constexpr (d == 1) {
      BRAINFAST_TILE_DO(1);
    }
    if constexpr (d == 2) {
      BRAINFAST_TILE_DO(2);
    }
    if constexpr (d == 3) {
      BRAINFAST_TILE_DO(3);
    }
#undef BRAINFAST_TILE_DO
  }
#undef BRAINFAST_EACH_TILE
};

#else

class Tiles {
 public:
  explicit Tiles(const TileConfig& config) : config_(config) {
    require(config.palette == 1 && config.start_row == 0, "palette 1 from row 0");
    for (std::uint8_t byte : config.reserved) require(byte == 0, "zeros where reserved");
    for (int tile = 0; tile < 16; ++tile) {
      const bool used = config.rows[tile] != 0;
      require(used == (config.row_bytes[tile] != 0), "rows and bytes, or neither");
      require(!used || tile < kTiles, "at most 8 tiles");
      require(config.rows[tile] <= kTileRows && config.row_bytes[tile] <= kTileBytes,
              "at most 16 rows of 64 bytes");
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int t>
  void zero() {
    require(rows(t) != 0, "a configured tile");
    std::memset(data_[t], 0, sizeof data_[t]);
  }

  template <int t>
  void load(const void* from, std::int64_t stride) {
    zero<t>();  // what the configuration leaves out reads as zero
    for (int row = 0; row < rows(t); ++row) {
      std::memcpy(data_[t][row], static_cast<const char*>(from) + row * stride, bytes(t));
    }
  }

  template <int t>
  void store(void* to, std::int64_t stride) {
    require(rows(t) != 0, "a configured tile");
    for (int row = 0; row < rows(t); ++row) {
      std::memcpy(static_cast<char*>(to) + row * stride, data_[t][row], bytes(t));
    }
  }

  template <int d, int a, int b>
  void dot() {
    static_assert(d != a && d != b && a != b, "the processor refuses a tile named twice");
    require(rows(d) != 0 && rows(d) == rows(a) && bytes(d) == bytes(b), "sums as the factors give");
    require(bytes(a) % 4 == 0 && bytes(a) / 4 == rows(b) && bytes(d) % 4 == 0, "factors that fit");
    for (int m = 0; m < rows(d); ++m) add_row(data_[d][m], data_[a][m], data_[b], rows(b));
    for (int m = rows(d); m < kTileRows; ++m) std::memset(data_[d][m], 0, kTileBytes);
  }

 private:
  static constexpr int kWords = kTileBytes / 4;
  using Row = std::uint32_t[kWords];

  static float number(std::uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
  }

  // A product of two bfloat16 is exact in float32, so that it does not matter whether the addition
  // is fused. Unlike the processor's, subnormal numbers are kept.
  static void add_row(Row& sum, const Row& a, const Row* b, int depth) {
    float even[kWords] = {}, odd[kWords] = {}, before[kWords];
    for (int k = 0; k < depth; ++k) {
      const float first = number(a[k] << 16), second = number(a[k] & 0xffff0000u);
      for (int n = 0; n < kWords; ++n) {
        even[n] += first * number(b[k][n] << 16);
        odd[n] += second * number(b[k][n] & 0xffff0000u);
      }
    }
    std::memcpy(before, sum, sizeof before);
    for (int n = 0; n < kWords; ++n) before[n] += even[n] + odd[n];
    std::memcpy(sum, before, sizeof before);
  }

  static void require(bool condition, const char* expected) {
    if (condition) return;
    std::fprintf(stderr, "tile: expected %s\n", expected);
    std::abort();
  }

  int rows(int tile) const { return config_.rows[tile]; }
  int bytes(int tile) const { return config_.row_bytes[tile]; }

  TileConfig config_;
  alignas(64) Row data_[kTiles][kTileRows] = {};
};

#endif

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
