// The emulator itself: products against plain loops, and mistakes that it has to show.
#include "thread_block_emulator.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <vector>

#include "expect.h"
#include "kernels/tensor_core.cuh"
#include "runtime/device.h"

using namespace brainfast;

namespace {

constexpr int kStride = 24;  // of a row of bfloat16 in shared memory: 16 numbers and padding

// Small whole numbers: products and sums are exact.
float number(int row, int column) { return static_cast<float>((row * 7 + column * 3) % 11 - 5); }

// sums [16,8] = a [16,16] b [16,8], from memory as it is or transposed.
void multiply(float* sums, bool transposed) {
  auto* const a = reinterpret_cast<unsigned short*>(device::shared_memory());
  unsigned short* const b = a + 16 * kStride;
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) {
    const int row = i / 16, column = i % 16;
    a[(transposed ? column : row) * kStride + (transposed ? row : column)] =
        device::to_bfloat(number(row, column));
    // b [16,8] and beside it the same numbers again, negative.
    const float value = (column < 8 ? 1.0f : -1.0f) * number(column % 8 + 2, row);
    b[(transposed ? row : column) * kStride + (transposed ? column : row)] =
        device::to_bfloat(value);
  }
  __syncwarp();
  const int eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8, row = lane % 8;
  unsigned left[4], right[4];
  if (transposed) {
    device::load_matrices_transposed(left, a + (sixteen + row) * kStride + eight);
    device::load_matrices_transposed(right, b + (eight + row) * kStride + sixteen);
  } else {
    device::load_matrices(left, a + (eight + row) * kStride + sixteen);
    device::load_matrices(right, b + (sixteen + row) * kStride + eight);
  }
  float twice[4] = {}, once[4] = {};
  device::multiply_add(twice, left, right[0], right[1]);
  device::multiply_add(once, left, right[2], right[3]);
  device::multiply_add(twice, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) {
    sums[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = twice[i] + once[i];
  }
}

void test_products() {
  for (bool transposed : {false, true}) {
    std::vector<float> sums(128, NAN);
    emulator::launch(multiply, 1, 32, 32 * kStride * 2, sums.data(), transposed);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float wanted = 0;
        for (int k = 0; k < 16; ++k) wanted += number(row, k) * number(column + 2, k);
        EXPECT(sums[row * 8 + column] == wanted);
      }
    }
  }
}

void test_rounding() {
  EXPECT(device::to_bfloat(1.0f) == 0x3F80);
  EXPECT(device::to_bfloat(1.00390625f) == 0x3F80);  // halfway: to even
  EXPECT(device::to_bfloat(1.01171875f) == 0x3F82);  // halfway: to even
  EXPECT(device::to_bfloat(-1.0040f) == 0xBF81);
  EXPECT(device::pack_bfloats(1.0f, 2.0f) == 0x40003F80);
  EXPECT(std::isnan(device::from_bfloat(device::to_bfloat(NAN))));
}

// Each thread reads what a thread of the other warp has written.
void exchange(float* out, bool wait) {
  float* const shared = reinterpret_cast<float*>(device::shared_memory());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (wait) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 32) % 64];
}

void test_a_missing_barrier_shows() {
  for (bool wait : {true, false}) {
    std::vector<float> out(64);
    emulator::launch(exchange, 1, 64, 64 * sizeof(float), out.data(), wait);
    bool right = true;
    for (int i = 0; i < 64; ++i) right &= out[i] == static_cast<float>((i + 32) % 64);
    EXPECT(right == wait);
  }
}

void copy(const uint4* from, uint4* to, bool wait) {
  uint4* const shared = reinterpret_cast<uint4*>(device::shared_memory());
  device::copy_async(shared + threadIdx.x, from + threadIdx.x);
  device::commit_copies();
  if (wait) device::wait_for_copies<0>();
  to[threadIdx.x] = shared[threadIdx.x];
}

void test_a_missing_wait_shows() {
  std::vector<uint4> from(32, {1, 2, 3, 4});
  emulator::schedule.late_copies = true;
  for (bool wait : {true, false}) {
    std::vector<uint4> to(32);
    emulator::launch(copy, 1, 32, 32 * sizeof(uint4), from.data(), to.data(), wait);
    for (const uint4& found : to) EXPECT((found.y == 2) == wait);
  }
  emulator::schedule = {};
}

void diverge_at_a_barrier() {
  if (threadIdx.x < 32) __syncthreads();
}

void diverge_in_a_warp() {
  if (threadIdx.x % 2) {
    __ballot_sync(~0u, true);
  } else {
    __syncwarp();
  }
}

void test_divergence_ends_the_program(void (*kernel)()) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    emulator::launch(kernel, 1, 64, 16);
    _exit(0);
  }
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(status != 0);
}

}  // namespace

int main() {
  test_products();
  test_rounding();
  test_a_missing_barrier_shows();
  test_a_missing_wait_shows();
  test_divergence_ends_the_program(diverge_at_a_barrier);
  test_divergence_ends_the_program(diverge_in_a_warp);
  std::puts("thread block emulator: passed");
}
