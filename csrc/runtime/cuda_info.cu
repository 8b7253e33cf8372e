#include <cuda_runtime.h>

#include <future>
#include <memory>

#include "cuda_info.h"

namespace brainfast {
namespace {

constexpr int kAnswer = 42;

__global__ void write_answer(int* answer) { *answer = kAnswer; }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

struct DeviceFree {
  void operator()(int* pointer) const { cudaFree(pointer); }
};

// Runs a kernel of this build on the current device: the only proof that its architecture fits.
cudaError_t try_kernel() {
  int* raw = nullptr;
  if (const cudaError_t error = cudaMalloc(&raw, sizeof(int))) return error;
  const std::unique_ptr<int, DeviceFree> answer(raw);
  write_answer<<<1, 1>>>(answer.get());
  if (const cudaError_t error = cudaGetLastError()) return error;
  int found = 0;
  if (const cudaError_t error =
          cudaMemcpy(&found, answer.get(), sizeof found, cudaMemcpyDeviceToHost)) {
    return error;
  }
  return found == kAnswer ? cudaSuccess : cudaErrorUnknown;
}

CudaDevice describe(int index) {
  CudaDevice device;
  cudaDeviceProp properties{};
  cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error == cudaSuccess) {
    device.name = properties.name;
    device.capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    device.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    error = cudaSetDevice(index);
  }
  if (error == cudaSuccess) error = try_kernel();
  if (error != cudaSuccess) {
    device.problem = cudaGetErrorString(error);
    cudaGetLastError();  // an error left behind would be blamed on the next call
  }
  return device;
}

}  // namespace

CudaInfo cuda_info(int only) {
  CudaInfo info;
  info.compiled = true;
  info.architectures = BRAINFAST_CUDA_ARCHITECTURES;
  info.runtime_version = version_text(CUDART_VERSION);
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    info.problem = "no NVIDIA driver is installed";
    return info;
  }
  info.driver_version = version_text(driver);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    info.problem = error != cudaSuccess ? cudaGetErrorString(error) : "no CUDA device is present";
    cudaGetLastError();
    return info;
  }
  const int first = only < 0 ? 0 : only, end = only < 0 ? count : only + 1;
  // On a thread of its own: to set the caller's device back would open a context there.
  std::async(std::launch::async, [&] {
    for (int index = first; index < end; ++index) info.devices.push_back(describe(index));
  }).get();
  return info;
}

}  // namespace brainfast
