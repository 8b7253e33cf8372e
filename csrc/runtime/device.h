// What CUDA code needs of its host: nvcc makes device code of it; a C++ compiler that is given the
// tests' emulator runs the same source on the host.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "thread_block_emulator.h"
#endif

namespace brainfast::device {

using Stream = void*;  // cudaStream_t

#if defined(__CUDACC__)

inline void check(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error left behind would be blamed on the next call
  throw std::runtime_error(std::string(name) + ": CUDA says: " + cudaGetErrorString(error));
}

// The calling thread's device for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "device");
    moved_ = device != before_;
    if (moved_) check(cudaSetDevice(device), "device");
  }
  ~DeviceGuard() {
    if (moved_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool moved_ = false;
};

inline int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "device");
  return count;
}

// As many blocks of `kernel` as fit on the device at a time.
template <class... P>
int resident_blocks(void (*kernel)(P...), int threads, std::size_t shared) {
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  if (shared > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "shared memory");
  }
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared), "kernel");
  return multiprocessors() * (blocks > 0 ? blocks : 1);
}

// `kernel` may take more than 48 KiB of shared memory once resident_blocks has asked for it.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int grid, int threads, std::size_t shared,
            Stream stream, A... arguments) {
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

#else

inline int emulated_multiprocessors = 2;

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

template <class... P>
int resident_blocks(void (*)(P...), int, std::size_t) {
  return emulated_multiprocessors;
}

template <class... P, class... A>
void launch(const char*, void (*kernel)(P...), int grid, int threads, std::size_t shared, Stream,
            A... arguments) {
  emulator::launch(kernel, grid, threads, shared, arguments...);
}

inline unsigned char* shared_memory() { return emulator::Block::current().shared(); }

#endif

}  // namespace brainfast::device
