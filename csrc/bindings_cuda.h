// How the bindings of the CUDA kernels take memory: it is the caller's, given as addresses, and no
// array library is known here. The caller answers for sizes and dtypes of what an address points
// to.
#pragma once

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings.h"
#include "kernels/cuda_call.h"

namespace brainfast {

using Address = std::uintptr_t;
using Block = std::pair<Address, std::int64_t>;  // address, bytes

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline cuda::Memory memory_of(const Block& block) { return {at<void>(block.first), block.second}; }

inline cuda::Kind kind_named(const std::string& dtype) {
  if (dtype == "float32") return cuda::Kind::float32;
  if (dtype == "bfloat16") return cuda::Kind::bfloat16;
  fail("dtype", "float32 or bfloat16", dtype);
}

}  // namespace brainfast
