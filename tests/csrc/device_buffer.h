// Memory and numbers for the tests of emulated CUDA kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "expect.h"
#include "kernels/cuda_call.h"
#include "kernels/tensor_core.cuh"

namespace brainfast {

// Device memory: of the size that was asked for, and all NaN.
class Buffer {
 public:
  explicit Buffer(std::int64_t bytes) : words_(bytes / 16), bytes_(bytes) {
    EXPECT(bytes % 16 == 0);
    std::memset(static_cast<void*>(words_.data()), 0xFF, bytes);
  }
  cuda::Memory memory() { return {words_.data(), bytes_}; }

 private:
  std::vector<uint4> words_;
  std::int64_t bytes_;
};

inline std::vector<unsigned short> as_bfloats(const std::vector<float>& numbers) {
  std::vector<unsigned short> found;
  for (float number : numbers) found.push_back(device::to_bfloat(number));
  return found;
}

inline void round_to_bfloat(std::vector<float>& numbers) {
  for (float& number : numbers) number = device::from_bfloat(device::to_bfloat(number));
}

template <class T, class U>
bool close(const std::vector<T>& found, const std::vector<U>& wanted, double tolerance) {
  double largest = 0, error = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(wanted[i])));
    const double difference = std::abs(static_cast<double>(found[i]) - wanted[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return found.size() == wanted.size() && error <= tolerance * (largest + 1e-3);
}

inline bool refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace brainfast
