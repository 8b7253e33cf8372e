#include "cuda_info.h"

namespace brainfast {

CudaInfo cuda_info(int) {
  CudaInfo info;
  info.problem = "brainfast was built without CUDA";
  return info;
}

}  // namespace brainfast
