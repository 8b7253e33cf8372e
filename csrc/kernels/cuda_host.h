// What the host does before a launch: cut memory into pieces, check it, count blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "../runtime/check.h"
#include "../runtime/device.h"
#include "cuda_call.h"

namespace brainfast::cuda {

inline std::int64_t parts_of(std::int64_t count, std::int64_t part) {
  return (count + part - 1) / part;
}

// Hands out pieces of a block of memory; of none, to learn how large it must be.
class Carver {
 public:
  explicit Carver(void* data) : data_(static_cast<unsigned char*>(data)) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::int64_t at = used_;
    used_ += parts_of(count * static_cast<std::int64_t>(sizeof(T)), kAlign) * kAlign;
    return data_ ? reinterpret_cast<T*>(data_ + at) : nullptr;
  }

  std::int64_t used() const { return used_; }

 private:
  static constexpr std::int64_t kAlign = 256;

  unsigned char* data_;
  std::int64_t used_ = 0;
};

inline void check_between(const char* name, std::int64_t value, std::int64_t most) {
  check(value >= 1 && value <= most, name, ("1 to " + std::to_string(most)).c_str(),
        std::to_string(value));
}

inline void check_memory(const Memory& memory, std::int64_t bytes, const char* name) {
  check(memory.bytes >= bytes, name, (std::to_string(bytes) + " bytes").c_str(),
        std::to_string(memory.bytes));
  check(memory.data && reinterpret_cast<std::uintptr_t>(memory.data) % 16 == 0, name,
        "memory aligned to 16 bytes", "another address");
}

// Blocks for `count` threads' work, one thread each.
inline int blocks_for(const char* name, std::int64_t count, int threads) {
  const std::int64_t blocks = parts_of(count, threads);
  check(blocks <= std::numeric_limits<std::int32_t>::max(), name, "at most 2^31 blocks",
        std::to_string(blocks));
  return static_cast<int>(blocks);
}

// A block for each unit of work, or as many as the device holds.
template <class Arguments>
void launch_resident(const char* name, void (*kernel)(Arguments), std::int64_t units, int threads,
                     std::size_t shared, device::Stream stream, const Arguments& arguments) {
  check(units <= 1 << 30, name, "at most 2^30 units of work", std::to_string(units));
  const std::int64_t blocks = device::resident_blocks(kernel, threads, shared);
  device::launch(name, kernel, static_cast<int>(std::min(blocks, units)), threads, shared, stream,
                 arguments);
}

}  // namespace brainfast::cuda
