// The bindings of the CUDA kernels as a Python module whose device is the thread-block emulator:
// addresses are the host's.
#include "bindings_cuda.cpp"
#include "bindings_cuda_blobgpt.cpp"
#include "bindings_cuda_score_topk.cpp"
#include "kernels/factor_projection.cu"
#include "kernels/factor_readout.cu"
#include "kernels/score_topk.cu"
#include "kernels/vertex_embed.cu"

PYBIND11_MODULE(emulated_cuda, m) {
  brainfast::bind_cuda(m);
  brainfast::bind_cuda_blobgpt(m);
  brainfast::bind_cuda_score_topk(m);
}
