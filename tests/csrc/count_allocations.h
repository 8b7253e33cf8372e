// Counts what the kernels allocate; link with --wrap=aligned_alloc and --wrap=_Znwm.
#pragma once

#include <atomic>
#include <cstddef>

static std::atomic<int> allocations{0};

extern "C" {
void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __real_aligned_alloc(alignment, size);
}
void* __real__Znwm(std::size_t size);
void* __wrap__Znwm(std::size_t size) {
  ++allocations;
  return __real__Znwm(size);
}
}
