// Sorts vertices by the grid cell of their sampling point, on the device and stably, and cuts the
// cells into tiles.
#pragma once

#include "factor_readout_device.cuh"

namespace brainfast::cuda {

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kSortThreads = 1024, kSortWarps = kSortThreads / 32;
constexpr int kScatterBytes = (kSortWarps + 1) * kDigits * static_cast<int>(sizeof(int));

// Where a coordinate falls between pixels `index` and `index + 1`.
struct Position {
  int index;
  float fraction;
  float slope;  // pixels per unit of the coordinate
};

// In double, so that a float sampling point lands in the cell that exact arithmetic gives. Past the
// border ring nothing is read: there the position is held at the ring's far edge, where the one
// pixel inside the image has coefficient zero. What is not finite falls in the first cell, with a
// fraction that is NaN.
__device__ inline Position locate(float coordinate, int size, bool align_corners) {
  const double wide = coordinate, far = size;
  const double pixel = align_corners ? (wide + 1) / 2 * (far - 1) : ((wide + 1) * far - 1) / 2;
  if (!(pixel - pixel == 0)) return {-1, NAN, 0.0f};
  const double slope = (align_corners ? far - 1 : far) / 2;
  const double held = pixel < -1 ? -1 : pixel > far ? far : pixel;
  const int below = held < 0 ? -1 : static_cast<int>(held);
  const int index = below < size - 1 ? below : size - 1;
  const bool inside = pixel >= -1 && pixel < far;
  return {index, static_cast<float>(held - index), inside ? static_cast<float>(slope) : 0.0f};
}

// A key of every vertex, and the order that there was before sorting.
__global__ void locate_vertices(Vertices p, const float* __restrict__ space /* [V,2] */,
                                int* __restrict__ cell, int* __restrict__ order) {
  const int v = blockIdx.x * blockDim.x + threadIdx.x;
  if (v >= p.vertices) return;
  const int column = locate(space[2 * v], p.width, p.align_corners).index + 1;
  const int row = locate(space[2 * v + 1], p.height, p.align_corners).index + 1;
  cell[v] = row * (p.width + 1) + column;
  order[v] = v;
}

// How often each digit occurs among a block's keys.
__global__ void count_digits(const int* __restrict__ keys, int count, int shift,
                             int* __restrict__ counts /* [blocks,kDigits] */) {
  int* const seen = reinterpret_cast<int*>(device::shared_memory());
  if (threadIdx.x < kDigits) seen[threadIdx.x] = 0;
  __syncthreads();
  const int i = blockIdx.x * kSortThreads + threadIdx.x;
  if (i < count) atomicAdd(&seen[keys[i] >> shift & (kDigits - 1)], 1);
  __syncthreads();
  if (threadIdx.x < kDigits) counts[blockIdx.x * kDigits + threadIdx.x] = seen[threadIdx.x];
}

// Sums of the numbers before each thread's own, which are in `numbers`; every thread calls it.
__device__ inline void add_up_before(int* numbers, int count) {
  const int i = threadIdx.x;
  const int own = i < count ? numbers[i] : 0;
  for (int step = 1; step < count; step *= 2) {
    const int before = i >= step && i < count ? numbers[i - step] : 0;
    __syncthreads();
    if (i < count) numbers[i] += before;
    __syncthreads();
  }
  if (i < count) numbers[i] -= own;
  __syncthreads();
}

// One digit of a stable radix sort: keys with the same digit stay in their order.
__global__ void scatter_digits(const int* __restrict__ keys, const int* __restrict__ values,
                               int count, int shift,
                               const int* __restrict__ counts /* [blocks,kDigits] */,
                               int* __restrict__ to_keys, int* __restrict__ to_values) {
  int* const place = reinterpret_cast<int*>(device::shared_memory());  // [kSortWarps,kDigits]
  int* const before = place + kSortWarps * kDigits;                    // [kDigits]
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int i = blockIdx.x * kSortThreads + tid;
  const int key = i < count ? keys[i] : 0;
  const int digit = key >> shift & (kDigits - 1);
  for (int j = tid; j < kSortWarps * kDigits; j += kSortThreads) place[j] = 0;
  __syncthreads();
  unsigned same = __ballot_sync(~0u, i < count);
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const unsigned votes = __ballot_sync(~0u, digit >> bit & 1);
    same &= digit >> bit & 1 ? votes : ~votes;
  }
  const int rank = __popc(same & ((1u << lane) - 1));
  if (i < count && rank == 0) place[warp * kDigits + digit] = __popc(same);
  int earlier = 0;
  if (tid < kDigits) {
    int all = 0;
    for (int block = 0; block < static_cast<int>(gridDim.x); ++block) {
      const int number = counts[block * kDigits + tid];
      earlier += block < static_cast<int>(blockIdx.x) ? number : 0;
      all += number;
    }
    before[tid] = all;
  }
  __syncthreads();
  add_up_before(before, kDigits);
  if (tid < kDigits) {
    int next = before[tid] + earlier;
    for (int w = 0; w < kSortWarps; ++w) {
      const int number = place[w * kDigits + tid];
      place[w * kDigits + tid] = next;
      next += number;
    }
  }
  __syncthreads();
  if (i >= count) return;
  const int to = place[warp * kDigits + digit] + rank;
  to_keys[to] = key;
  to_values[to] = values[i];
}

// The first of `count` ascending keys that is not below `key`.
__device__ inline int lower_bound(const int* keys, int count, int key) {
  int begin = 0;
  while (count > 0) {
    const int half = count / 2;
    const bool below = keys[begin + half] < key;
    begin = below ? begin + half + 1 : begin;
    count = below ? count - half - 1 : half;
  }
  return begin;
}

// By one block: where cells and their tiles begin.
__global__ void cut_tiles(Vertices p) {
  int* const tiles = reinterpret_cast<int*>(device::shared_memory());  // [kSortThreads]
  int done = 0;
  for (int base = 0; base < p.cells(); base += kSortThreads) {
    const int cell = base + static_cast<int>(threadIdx.x);
    const bool real = cell < p.cells();
    const int begin = real ? lower_bound(p.cell, p.vertices, cell) : 0;
    const int end = real ? lower_bound(p.cell, p.vertices, cell + 1) : 0;
    const int own = (end - begin + kTile - 1) / kTile;
    if (real) p.cell_begin[cell] = begin;
    tiles[threadIdx.x] = own;
    __syncthreads();
    add_up_before(tiles, kSortThreads);
    const int first = done + tiles[threadIdx.x];
    for (int j = 0; j < own; ++j) {
      const int left = end - begin - j * kTile;
      p.tiles[first + j] = {begin + j * kTile, left < kTile ? left : kTile, cell};
    }
    __syncthreads();
    if (threadIdx.x == kSortThreads - 1) tiles[0] = first + own;
    __syncthreads();
    done = tiles[0];
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  p.cell_begin[p.cells()] = p.vertices;
  *p.tile_count = done;
}

}  // namespace brainfast::cuda
