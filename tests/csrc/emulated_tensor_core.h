// Host versions of kernels/tensor_core.cuh: whole warps at a time, over the emulator's lanes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "thread_block_emulator.h"

namespace brainfast::device {

using emulator::Block;

// To nearest, ties to even.
inline unsigned short to_bfloat(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<unsigned short>(bits >> 16 | 0x40);
  return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat(unsigned short value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

inline unsigned pack_bfloats(float low, float high) {
  return to_bfloat(low) | static_cast<unsigned>(to_bfloat(high)) << 16;
}

struct MatrixLoad {
  unsigned* registers;  // [4]
  const void* row;
};

inline const unsigned short* matrix_row(void* const* lanes, int matrix, int row) {
  const auto* address = static_cast<MatrixLoad*>(lanes[8 * matrix + row])->row;
  if (reinterpret_cast<std::uintptr_t>(address) % 16) emulator::stop("an unaligned matrix row");
  return static_cast<const unsigned short*>(address);
}

// Lane i hands over row i % 8 of matrix i / 8; it gets elements (i / 4, 2 * (i % 4) + 0..1).
inline void load_matrices(unsigned (&registers)[4], const void* row) {
  MatrixLoad load{registers, row};
  Block::current().together(
      [](void* const* lanes) {
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          unsigned* const to = static_cast<MatrixLoad*>(lanes[lane])->registers;
          for (int matrix = 0; matrix < 4; ++matrix) {
            std::memcpy(to + matrix, matrix_row(lanes, matrix, lane / 4) + 2 * (lane % 4), 4);
          }
        }
      },
      &load);
}

// The same of the transposed matrices: elements (2 * (i % 4) + 0..1, i / 4).
inline void load_matrices_transposed(unsigned (&registers)[4], const void* row) {
  MatrixLoad load{registers, row};
  Block::current().together(
      [](void* const* lanes) {
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          unsigned* const to = static_cast<MatrixLoad*>(lanes[lane])->registers;
          for (int matrix = 0; matrix < 4; ++matrix) {
            const unsigned low = matrix_row(lanes, matrix, 2 * (lane % 4))[lane / 4];
            const unsigned high = matrix_row(lanes, matrix, 2 * (lane % 4) + 1)[lane / 4];
            to[matrix] = low | high << 16;
          }
        }
      },
      &load);
}

struct Product {
  float* sums;        // [4]
  const unsigned* a;  // [4]
  unsigned b[2];
};

// mma.sync.m16n8k16: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
inline void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Product product{sums, a, {b0, b1}};
  Block::current().together(
      [](void* const* lanes) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          const auto* mine = static_cast<Product*>(lanes[lane]);
          for (int part = 0; part < 8; ++part) {
            const int row = lane / 4 + part / 2 % 2 * 8;
            const int column = lane % 4 * 2 + part % 2 + part / 4 * 8;
            const unsigned pair = mine->a[part / 2];
            a[row][column] = from_bfloat(static_cast<unsigned short>(pair >> part % 2 * 16));
          }
          for (int part = 0; part < 4; ++part) {
            const unsigned pair = mine->b[part / 2];
            b[lane % 4 * 2 + part % 2 + part / 2 * 8][lane / 4] =
                from_bfloat(static_cast<unsigned short>(pair >> part % 2 * 16));
          }
        }
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          const auto* mine = static_cast<Product*>(lanes[lane]);
          for (int part = 0; part < 4; ++part) {
            const int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
            for (int k = 0; k < 16; ++k) mine->sums[part] += a[row][k] * b[k][column];
          }
        }
      },
      &product);
}

inline void copy_async(void* to, const void* from) {
  const auto bits = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
  if (bits % 16) emulator::stop("an unaligned asynchronous copy");
  emulator::Fiber& fiber = Block::current().fiber();
  if (emulator::schedule.late_copies) {
    fiber.copies.push_back({to, from, fiber.copy_group});
  } else {
    std::memcpy(to, from, 16);
  }
}

inline void copy_async_or_zero(void* to, const void* from, bool real) {
  alignas(16) static constexpr unsigned char kZeros[16] = {};
  copy_async(to, real ? from : kZeros);
}

inline void commit_copies() { ++Block::current().fiber().copy_group; }

template <int kPending>
void wait_for_copies() {
  emulator::finish_copies(kPending);
}

}  // namespace brainfast::device
