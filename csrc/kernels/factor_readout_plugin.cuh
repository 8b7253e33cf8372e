// The readout in one launch and without a workspace, from the arrays of the exported node: what
// TensorRT, which calls a plugin's kernel itself, can be given.
//
//   y_v = bias_v + sum_{k<5L} coefficient_vk (weight_v . X_k)      X_k: tokens of v's cell
//
// Rows are vertices in the order of their cells, 16 a warp: their weights of a slice of channels
// stay in registers, as the high and low bfloat16 halves of bf16x3. Columns are a cell's tokens,
// (layer, corner) and then the global ones, split on their way to shared memory. Dots never leave
// registers: coefficients weigh them there.
#pragma once

#include <cstdint>

#include "../runtime/device.h"
#include "tensor_core.cuh"

namespace brainfast::plugin {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kTile = 16, kRows = kWarps * kTile;  // of a warp, and of a block of threads
constexpr int kImages = 8;                         // that a block of threads answers for
constexpr int kChannels = 128;                     // of a slice
constexpr int kSteps = kChannels / 16;             // of a product of tiles
constexpr int kColumns = 32;                       // in shared memory at a time
constexpr int kQuads = 2;                          // of columns, that a thread brings
constexpr int kHalfBytes = kChannels * 2;
constexpr int kColumnBytes = 2 * kHalfBytes + 16;  // high, low; padding against bank conflicts
constexpr int kPanelBytes = kColumns * kColumnBytes;
// Two panels of columns, then the answers. No more than a launch gets without asking.
constexpr int kSharedBytes = 2 * kPanelBytes + kImages * kRows * 4;
static_assert(kSharedBytes <= 48 * 1024);
static_assert(kColumns * kChannels == kThreads * kQuads * 4 * 2);

// The node's inputs and output; Index is std::int32_t or std::int64_t.
template <class Index>
struct Arguments {
  const float* local;        // [B,L,D,P], P pixels
  const float* global;       // [B,L,D]
  const float* weight;       // [G,D,N]
  const float* coefficient;  // [G,5L,N], terms: corner by corner, then the global tokens
  const Index* cell;         // [G]
  const Index* corners;      // [cells,4], pixels; P outside the grid
  const Index* vertices;     // [G,N], V where there is none
  const float* bias;         // [V]
  int images, layers, channels, pixels, blocks, block_vertices, vertex_count;
  float* output;  // [B,V]

  __device__ int columns() const { return 5 * layers; }
  __device__ int tiles() const { return blocks * (block_vertices / kTile); }
  __device__ int block_of(int tile) const { return tile / (block_vertices / kTile); }
  // Of the coefficients, for a column.
  __device__ int term(int column) const {
    return column < 4 * layers ? column % 4 * layers + column / 4 : column;
  }
};

// Two numbers as high and low halves.
struct Halves {
  unsigned high, low;

  __device__ Halves(float a, float b) : high(device::pack_bfloats(a, b)) {
    low = device::pack_bfloats(a - device::from_bfloat(static_cast<unsigned short>(high)),
                               b - device::from_bfloat(static_cast<unsigned short>(high >> 16)));
  }
};

// Brings columns of one cell and slice to shared memory, a pair of channels and kQuads fours of
// columns a thread: the corners of a layer, which lie side by side, or four global tokens.
template <class Index>
class Columns {
 public:
  __device__ Columns(const Arguments<Index>& a, Index cell, int slice)
      : a_(a), channel_(slice * kChannels + pair() * 2) {
#pragma unroll
    for (int c = 0; c < 4; ++c) pixel_[c] = static_cast<int>(a.corners[cell * 4 + c]);
  }

  // From global memory to registers.
  __device__ void fetch(std::int64_t image, int first) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int quad = (first + column()) / 4 + q;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int channel = channel_ + side;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          value_[q][c][side] = channel < a_.channels ? token(image, quad, c, channel) : 0.0f;
        }
      }
    }
  }

  __device__ void store(unsigned char* panel) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const Halves halves(value_[q][c][0], value_[q][c][1]);
        unsigned char* const to = panel + (column() + 4 * q + c) * kColumnBytes + pair() * 4;
        *reinterpret_cast<unsigned*>(to) = halves.high;
        *reinterpret_cast<unsigned*>(to + kHalfBytes) = halves.low;
      }
    }
  }

 private:
  static constexpr int kPairs = kChannels / 2;

  __device__ static int pair() { return threadIdx.x % kPairs; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) / kPairs * kQuads * 4; }

  __device__ float token(std::int64_t image, int quad, int c, int channel) const {
    if (quad < a_.layers) {
      const std::int64_t row = (image * a_.layers + quad) * a_.channels + channel;
      const bool inside = pixel_[c] >= 0 && pixel_[c] < a_.pixels;
      return inside ? a_.local[row * a_.pixels + pixel_[c]] : 0.0f;
    }
    const int layer = 4 * (quad - a_.layers) + c;
    return layer < a_.layers ? a_.global[(image * a_.layers + layer) * a_.channels + channel]
                             : 0.0f;
  }

  const Arguments<Index>& a_;
  int channel_;
  int pixel_[4];
  float value_[kQuads][4][2];
};

// A warp's vertices. A thread has two of the rows, lane / 4 + 0 and 8.
template <class Index>
class Tile {
 public:
  __device__ Tile(const Arguments<Index>& a, int tile, float* answers)
      : a_(a), lane_(threadIdx.x % 32), answers_(answers) {
    const int block = a.block_of(tile);
    place_ = tile * kTile - block * a.block_vertices;
    weight_ = a.weight + std::int64_t{block} * a.channels * a.block_vertices + place_;
    coefficient_ = a.coefficient + std::int64_t{block} * a.columns() * a.block_vertices + place_;
  }

  // The slice's weights as fragments of mma.m16n8k16.
  __device__ void load_weight(int slice) {
    const float* const own = weight_ + lane_ / 4;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int channel = slice * kChannels + step * 16 + r / 2 * 8 + lane_ % 4 * 2;
        const float* const at = own + std::int64_t{channel} * a_.block_vertices + r % 2 * 8;
        const float even = channel < a_.channels ? at[0] : 0.0f;
        const float odd = channel + 1 < a_.channels ? at[a_.block_vertices] : 0.0f;
        const Halves halves(even, odd);
        high_[step][r] = halves.high;
        low_[step][r] = halves.low;
      }
    }
  }

  // Adds what a panel's columns, from `first` on, count in y.
  __device__ void multiply(const unsigned char* panel, int first) {
    const int left = a_.columns() - first;
    const unsigned char* const row =
        panel + (lane_ / 16 * 8 + lane_ % 8) * kColumnBytes + lane_ / 8 % 2 * 16;
    for (int from = 0; from < kColumns && from < left; from += 16) {
      float sums[2][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        unsigned high[4], low[4];
        device::load_matrices(high, row + from * kColumnBytes + step * 32);
        device::load_matrices(low, row + from * kColumnBytes + kHalfBytes + step * 32);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = 2 * half;
          device::multiply_add(sums[half], high_[step], high[at], high[at + 1]);
          device::multiply_add(sums[half], high_[step], low[at], low[at + 1]);
          device::multiply_add(sums[half], low_[step], high[at], high[at + 1]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float factor[4];
        load_factors(factor, first + from + half * 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) y_[i / 2] += sums[half][i] * factor[i];
      }
    }
  }

  // Adds y of an image, as far as it goes, to the warp's answers.
  __device__ void finish(int image) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float sum = y_[side];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane_ % 4 == 0) answers_[image * kRows + lane_ / 4 + side * 8] += sum;
      y_[side] = 0;
    }
  }

 private:
  // Of the two rows and of two columns next to each other, as the sums of a product lie.
  __device__ void load_factors(float (&factor)[4], int column) const {
    const float* const own = coefficient_ + lane_ / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = column + lane_ % 4 * 2 + i % 2;
      factor[i] =
          c < a_.columns() ? own[std::int64_t{a_.term(c)} * a_.block_vertices + i / 2 * 8] : 0.0f;
    }
  }

  const Arguments<Index>& a_;
  int lane_, place_;
  const float* weight_;
  const float* coefficient_;
  float* answers_;
  float y_[2] = {};
  unsigned high_[kSteps][4], low_[kSteps][4];
};

// Answers of the tiles of this block of threads that read one cell: `mine` where the warp's does.
template <class Index>
__device__ void answer_cell(const Arguments<Index>& a, Tile<Index>& tile, Index cell, bool mine,
                            std::int64_t first_image, int images) {
  unsigned char* const panels = device::shared_memory();
  const int chunks = (a.columns() + kColumns - 1) / kColumns, last = images * chunks - 1;
  for (int slice = 0; slice * kChannels < a.channels; ++slice) {
    Columns<Index> columns(a, cell, slice);
    columns.fetch(first_image, 0);
    if (mine) tile.load_weight(slice);
    columns.store(panels);
    __syncthreads();
    for (int turn = 0; turn <= last; ++turn) {
      const int image = turn / chunks, chunk = turn - image * chunks;
      if (turn < last) {
        const int next = (turn + 1) / chunks;
        columns.fetch(first_image + next, (turn + 1 - next * chunks) * kColumns);
      }
      if (mine) {
        tile.multiply(panels + turn % 2 * kPanelBytes, chunk * kColumns);
        if (chunk == chunks - 1) tile.finish(image);
      }
      if (turn < last) columns.store(panels + (turn + 1) % 2 * kPanelBytes);
      __syncthreads();
    }
  }
}

template <class Index>
__device__ void write_answers(const Arguments<Index>& a, int tile, const float* answers,
                              std::int64_t first_image, int images) {
  const int lane = threadIdx.x % 32;
  if (lane >= kTile) return;
  const Index vertex = a.vertices[std::int64_t{tile} * kTile + lane];
  if (vertex < 0 || vertex >= a.vertex_count) return;
  for (int image = 0; image < images; ++image) {
    a.output[(first_image + image) * a.vertex_count + vertex] =
        answers[image * kRows + lane] + a.bias[vertex];
  }
}

// Blocks of threads go over the vertices, kRows a block, and over the images, kImages a block.
template <class Index>
__device__ void answer(const Arguments<Index>& a) {
  const int row_blocks = (a.tiles() + kWarps - 1) / kWarps;
  const int first_tile = static_cast<int>(blockIdx.x) % row_blocks * kWarps;
  const std::int64_t first_image =
      std::int64_t{static_cast<int>(blockIdx.x) / row_blocks} * kImages;
  const std::int64_t left = a.images - first_image;
  const int images = left < kImages ? static_cast<int>(left) : kImages;
  const int count = a.tiles() - first_tile < kWarps ? a.tiles() - first_tile : kWarps;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int own = warp < count ? first_tile + warp : first_tile;
  float* const answers =
      reinterpret_cast<float*>(device::shared_memory() + 2 * kPanelBytes) + warp * kTile;
  for (int i = threadIdx.x % 32; i < kImages * kTile; i += 32) {
    answers[i / kTile * kRows + i % kTile] = 0;
  }
  __syncwarp();
  Tile<Index> tile(a, own, answers);
  // Tiles are sorted by their cells: neighbours mostly read the same one.
  for (int begin = 0, end; begin < count; begin = end) {
    const Index cell = a.cell[a.block_of(first_tile + begin)];
    end = begin + 1;
    while (end < count && a.cell[a.block_of(first_tile + end)] == cell) ++end;
    answer_cell(a, tile, cell, warp >= begin && warp < end, first_image, images);
  }
  __syncwarp();
  if (warp < count) write_answers(a, own, answers, first_image, images);
}

}  // namespace brainfast::plugin
