// What every call on a CUDA device takes. Pointers are to the device's memory, all of it the
// caller's, and work goes to the caller's stream: a call waits for nothing, allocates nothing and
// can be captured in a graph. Results are the same bits on every run on one kind of device: there
// is no atomic addition of floats.
#pragma once

#include <cstdint>

namespace brainfast::cuda {

struct Queue {
  int device;
  void* stream;  // cudaStream_t of that device
};

struct Memory {
  void* data;  // a multiple of 16
  std::int64_t bytes;
};

// Of arrays that are float32, or bfloat16 which every precision but fp32 then takes as it is.
enum class Kind { float32, bfloat16 };

}  // namespace brainfast::cuda
