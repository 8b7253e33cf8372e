// What this build can do on the machine's CUDA devices, and why not where it cannot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace brainfast {

struct CudaDevice {
  std::string name;
  std::string capability;  // "9.0"
  std::int64_t memory_bytes = 0;
  std::string problem;  // empty where a kernel of this build has run
};

struct CudaInfo {
  bool compiled = false;
  std::string architectures;  // of the build
  std::string runtime_version;
  std::string driver_version;  // of CUDA that the driver supports; empty without a driver
  std::string problem;         // why there are no devices; empty where there are
  std::vector<CudaDevice> devices;
};

// Of every device, or of one alone: a kernel is run there, which takes some of its memory for as
// long as the process lives. Never throws for a missing driver or device: that is an answer.
CudaInfo cuda_info(int only = -1);

}  // namespace brainfast
