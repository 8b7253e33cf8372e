// Brings a tile's weights and chunks of tokens to shared memory.
#pragma once

#include "factor_readout_tile.cuh"

namespace brainfast::cuda {

// Shared memory: the tile's weights, two chunks of tokens, the slots.
constexpr int kChunksAt = kTile * kRowBytes;
constexpr int kSlotsAt = kChunksAt + 2 * kChunkBytes;
constexpr int kForwardBytes = kSlotsAt + 64;
static_assert(sizeof(SharedSlots) <= 64);

// Of one block.
class TileLoader {
 public:
  __device__ TileLoader(const Vertices& p, const TokenRows& x)
      : p_(p), x_(x), shared_(device::shared_memory()) {}

  // Every thread calls it, with a barrier after its last look at the tile before; ends with one.
  __device__ Tile begin(int index) const {
    auto* const slots = reinterpret_cast<SharedSlots*>(shared_ + kSlotsAt);
    const TileRecord found = p_.tiles[index];
    if (threadIdx.x == 0) slots->fill(p_, found.cell);
    __syncthreads();
    return {found.begin, found.count, slots->count * p_.layers, slots->corner, slots->pixel};
  }

  __device__ int chunks(const Tile& tile) const {
    return ((tile.terms << x_.shift) + kChunk - 1) / kChunk;
  }

  __device__ void start_weight(const Tile& tile, int slice) const {
    const unsigned char* const rows =
        p_.weight + static_cast<std::int64_t>(slice) * (p_.vertices + 1) * kRowBytes;
    for (int half = 0; half < kTile / kChunk; ++half) {
      copy_rows(shared_ + half * kChunkBytes, rows, kChunk, [&](int r) -> std::int64_t {
        const int v = half * kChunk + r;
        return v < tile.count ? tile.begin + v : p_.vertices;
      });
    }
    device::commit_copies();
  }

  // Into one of two places, as `turn` is even or odd.
  __device__ void start_chunk(const Tile& tile, int group, int slice, int chunk, int turn) const {
    copy_rows(place(turn), x_.data + slice * x_.rows * kRowBytes, kChunk,
              [&](int r) { return token_row(p_, x_, tile, group, chunk * kChunk + r); });
    device::commit_copies();
  }

  // Calls ready() once the slice's weights are in shared memory, where `fresh` asks for them, then
  // use(chunk, rows) for each chunk of a slice while the next one is on its way. A barrier stands
  // before and after each call.
  template <class Ready, class Use>
  __device__ void each_chunk(const Tile& tile, int group, int slice, bool fresh, Ready&& ready,
                             Use&& use) const {
    if (fresh) start_weight(tile, slice);
    start_chunk(tile, group, slice, 0, 0);
    if (fresh) {
      device::wait_for_copies<1>();
      __syncthreads();
      ready();
    }
    each_in_turn(
        chunks(tile), [&](int chunk) { start_chunk(tile, group, slice, chunk, chunk); },
        [&](int chunk) { use(chunk, place(chunk)); });
  }

  __device__ unsigned char* weight() const { return shared_; }
  __device__ unsigned char* place(int turn) const {
    return shared_ + kChunksAt + turn % 2 * kChunkBytes;
  }

  // Columns of a chunk, rounded up to 16: the rest are zero rows.
  __device__ int columns(const Tile& tile, int chunk) const {
    const int left = (tile.terms << x_.shift) - chunk * kChunk;
    return left < kChunk ? (left + 15) / 16 * 16 : kChunk;
  }

  // Channels of a slice in units of `unit`, rounded up.
  __device__ int steps(int slice, int width, int unit) const {
    return steps_of_slice(p_.channels, slice, width, unit);
  }

 private:
  const Vertices& p_;
  const TokenRows& x_;
  unsigned char* shared_;
};

}  // namespace brainfast::cuda
