// Sums of outer products: for the gradients of weights and tokens.
//
// The left factors of a chunk, a selector times the gradient of y each, lie in shared memory as
// left [kChunk,kTile]; the right ones are rows of weights or tokens. The product [kTile, channels
// of a slice] stays in registers over all chunks.
#pragma once

#include "packed_rows.cuh"

namespace brainfast::cuda {

template <Precision kPrecision>
class OuterProduct;

// bfloat16 on tensor cores: a warp has 32 of the rows and all channels.
template <>
class OuterProduct<Precision::bf16> {
 public:
  static constexpr int kLeftBytes = kRowBytes;  // of one row of left
  static constexpr int kPairs = slice_channels(Precision::bf16) / 16;

  __device__ OuterProduct() : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  __device__ static void store(unsigned char* left, int k, int row, float value) {
    reinterpret_cast<unsigned short*>(left + k * kLeftBytes)[row] = device::to_bfloat(value);
  }

  __device__ static void store_images(unsigned char* left, int k, int row,
                                      const float (&values)[kTrainingImages]) {
    *reinterpret_cast<uint4*>(left + k * kLeftBytes + row * 2) = {
        device::pack_bfloats(values[0], values[1]), device::pack_bfloats(values[2], values[3]),
        device::pack_bfloats(values[4], values[5]), device::pack_bfloats(values[6], values[7])};
  }

  // `count` rows and `channels` channels are not padding.
  __device__ void add(const unsigned char* left, const unsigned char* rows, int count,
                      int channels) {
    if (warp_ * 32 >= count) return;
    // Without a branch a pair, its loads run ahead of the products.
    if (channels >= slice_channels(Precision::bf16)) {
      add_pairs<true>(left, rows, channels);
    } else {
      add_pairs<false>(left, rows, channels);
    }
  }

  // Calls use(row, channel, sum) for all that this thread has.
  template <class Use>
  __device__ void each(Use&& use) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int part = 0; part < 2 * kPairs; ++part) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          use(warp_ * 32 + m * 16 + i / 2 * 8 + lane_ / 4, part * 8 + lane_ % 4 * 2 + i % 2,
              sums_[m][part][i]);
        }
      }
    }
  }

 private:
  template <bool kAll>
  __device__ void add_pairs(const unsigned char* left, const unsigned char* rows, int channels) {
    const unsigned char* const a =
        left + (lane_ / 16 * 8 + lane_ % 8) * kLeftBytes + warp_ * 64 + lane_ / 8 % 2 * 16;
    const unsigned char* const b = rows + lane_ % 16 * kRowBytes + lane_ / 16 * 16;
    for (int step = 0; step < kChunk / 16; ++step) {
      unsigned factors[2][4];
      device::load_matrices_transposed(factors[0], a + step * 16 * kLeftBytes);
      device::load_matrices_transposed(factors[1], a + step * 16 * kLeftBytes + 32);
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        if (!kAll && pair * 16 >= channels) continue;
        unsigned right[4];
        device::load_matrices_transposed(right, b + step * 16 * kRowBytes + pair * 32);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          device::multiply_add(sums_[m][2 * pair], factors[m], right[0], right[1]);
          device::multiply_add(sums_[m][2 * pair + 1], factors[m], right[2], right[3]);
        }
      }
    }
  }

  int warp_, lane_;
  float sums_[2][2 * kPairs][4] = {};
};

// Multiply-add in float32: a thread has 8 rows and 8 channels, in pieces of four.
template <>
class OuterProduct<Precision::fp32> {
 public:
  static constexpr int kLeftBytes = (kTile + 4) * 4;
  static_assert(kChunk * kLeftBytes <= kTile * kRowBytes);

  __device__ OuterProduct() : row_(threadIdx.x / 8 * 4), channel_(threadIdx.x % 8 * 4) {}

  __device__ static void store(unsigned char* left, int k, int row, float value) {
    reinterpret_cast<float*>(left + k * kLeftBytes)[row] = value;
  }

  __device__ static void store_images(unsigned char* left, int k, int row,
                                      const float (&values)[kTrainingImages]) {
    float4* const to = reinterpret_cast<float4*>(left + k * kLeftBytes + row * 4);
    to[0] = {values[0], values[1], values[2], values[3]};
    to[1] = {values[4], values[5], values[6], values[7]};
  }

  __device__ void add(const unsigned char* left, const unsigned char* rows, int, int) {
    for (int k = 0; k < kChunk; ++k) {
      const unsigned char* const a = left + k * kLeftBytes + row_ * 4;
      const unsigned char* const b = rows + k * kRowBytes + channel_ * 4;
      const float4 a0 = *reinterpret_cast<const float4*>(a);
      const float4 a1 = *reinterpret_cast<const float4*>(a + kTile / 2 * 4);
      const float4 b0 = *reinterpret_cast<const float4*>(b);
      const float4 b1 = *reinterpret_cast<const float4*>(b + kRowData / 2);
      const float factors[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
      const float right[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums_[i][j] += factors[i] * right[j];
      }
    }
  }

  template <class Use>
  __device__ void each(Use&& use) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        use(i / 4 * (kTile / 2) + row_ + i % 4, j / 4 * 32 + channel_ + j % 4, sums_[i][j]);
      }
    }
  }

 private:
  int row_, channel_;
  float sums_[8][8] = {};
};

}  // namespace brainfast::cuda
