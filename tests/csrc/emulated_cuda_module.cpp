// The bindings of the CUDA kernels as a Python module whose device is the thread-block emulator:
// addresses are the host's.
#include "bindings_cuda.cpp"
#include "kernels/factor_readout.cu"

PYBIND11_MODULE(emulated_cuda, m) { brainfast::bind_cuda(m); }
