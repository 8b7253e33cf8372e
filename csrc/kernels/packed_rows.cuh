// The packed form of weights, filters and tokens, and how it reaches shared memory.
//
// Rows of kRowBytes, a slice of the channels each: 128 bfloat16, or 64 float32, or 64 numbers as
// the high and then the low halves of bf16x3. The 16 bytes of padding spread the rows over the
// banks of shared memory. The last row of each slice is zero.
#pragma once

#include <bit>
#include <cstdint>

#include "../runtime/cpu_features.h"
#include "cuda_call.h"
#include "tensor_core.cuh"

namespace brainfast::cuda {

constexpr int kRowBytes = 272, kRowData = 256;
constexpr int kRowPieces = kRowData / 16, kRowPairs = kRowPieces / 2;
constexpr int kTile = 128;  // rows of a product
constexpr int kChunk = 64;  // rows that are copied to shared memory at a time
constexpr int kThreads = 128;
constexpr int kPackThreads = 256;
constexpr int kChunkBytes = kChunk * kRowBytes;
constexpr int kTrainingImages = 8;  // that stand side by side in the rows of tokens
constexpr int kResidentBlocks = 3;  // of a multiprocessor: what registers and memory allow

__host__ __device__ constexpr int slice_channels(Precision precision) {
  return precision == Precision::bf16 ? 128 : 64;
}

// Units of `unit` channels in a slice, rounded up.
__device__ inline int steps_of_slice(int channels, int slice, int width, int unit) {
  const int left = channels - slice * width;
  return ((left < width ? left : width) + unit - 1) / unit;
}

__device__ inline float load_number(const void* numbers, std::int64_t index, Kind kind) {
  if (kind == Kind::float32) return static_cast<const float*>(numbers)[index];
  return device::from_bfloat(static_cast<const unsigned short*>(numbers)[index]);
}

__device__ inline unsigned bits_of(float value) {
#if defined(__CUDACC__)
  return __float_as_uint(value);
#else
  return std::bit_cast<unsigned>(value);
#endif
}

// Two numbers of a row as bfloat16: rounded, or what rounding takes away where `low`.
__device__ inline unsigned pack_pair(float first, float second, bool low) {
  if (low) {
    first -= device::from_bfloat(device::to_bfloat(first));
    second -= device::from_bfloat(device::to_bfloat(second));
  }
  return device::pack_bfloats(first, second);
}

// 16 bytes of a row whose channel c is number(c).
template <class Number>
__device__ inline uint4 pack_piece(int piece, Precision precision, Number&& number) {
  if (precision == Precision::fp32) {
    const int c = piece * 4;
    return {bits_of(number(c)), bits_of(number(c + 1)), bits_of(number(c + 2)),
            bits_of(number(c + 3))};
  }
  const bool low = precision == Precision::bf16x3 && piece >= kRowPieces / 2;
  const int c = (low ? piece - kRowPieces / 2 : piece) * 8;
  return {pack_pair(number(c), number(c + 1), low), pack_pair(number(c + 2), number(c + 3), low),
          pack_pair(number(c + 4), number(c + 5), low),
          pack_pair(number(c + 6), number(c + 7), low)};
}

// Starts this thread's part of copying rows to shared memory: row_index(r) is the source of row r.
// Four threads stand at a row, so that 64 bytes next to each other are copied at a time.
template <class RowIndex>
__device__ inline void copy_rows(unsigned char* to, const unsigned char* rows, int count,
                                 RowIndex&& row_index) {
  const int quarter = threadIdx.x % 4;
  for (int r = threadIdx.x / 4; r < count; r += kThreads / 4) {
    const unsigned char* const from = rows + row_index(r) * kRowBytes;
    for (int part = quarter; part < kRowPieces; part += 4) {
      device::copy_async(to + r * kRowBytes + part * 16, from + part * 16);
    }
  }
}

// Calls use(i) for i = 0 .. count - 1 while what start(i + 1) copies is on its way; the caller has
// made start(0). Each start closes one group of copies. A barrier stands before and after each use.
template <class Start, class Use>
__device__ inline void each_in_turn(int count, Start&& start, Use&& use) {
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) {
      start(i + 1);
      device::wait_for_copies<1>();
    } else {
      device::wait_for_copies<0>();
    }
    __syncthreads();
    use(i);
    __syncthreads();
  }
}

}  // namespace brainfast::cuda
