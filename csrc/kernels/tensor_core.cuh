// Products of bfloat16 matrices on tensor cores, and copies that run beside them. Every
// architecture from sm_80 has these instructions.
#pragma once

#include "../runtime/device.h"

#if !defined(__CUDACC__)
#include "emulated_tensor_core.h"
#else

namespace brainfast::device {

// To nearest, ties to even: `low` in the lower half.
__device__ __forceinline__ unsigned pack_bfloats(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ unsigned short to_bfloat(float value) {
  return static_cast<unsigned short>(pack_bfloats(value, 0.0f));
}

__device__ __forceinline__ float from_bfloat(unsigned short value) {
  return __uint_as_float(static_cast<unsigned>(value) << 16);
}

// Four 8x8 matrices of bfloat16: lane i hands over the address of row i % 8 of matrix i / 8 in
// shared memory, and gets elements (i / 4, 2 * (i % 4) + 0..1) of each.
__device__ __forceinline__ void load_matrices(unsigned (&registers)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// The same of the transposed matrices: elements (2 * (i % 4) + 0..1, i / 4).
__device__ __forceinline__ void load_matrices_transposed(unsigned (&registers)[4],
                                                         const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// sums [16,8] += a [16,16] b [16,8], in the fragments of mma.m16n8k16.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory, past the first cache.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

// The same, or 16 zero bytes; `from` is an address that may be read in any case.
__device__ __forceinline__ void copy_async_or_zero(void* to, const void* from, bool real) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most `kPending` groups of this thread are on their way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace brainfast::device

#endif
