// Compiled to PTX, which travels in the package and then in TensorRT's engine files: see
// export/tensorrt_plugin.py, which launches it with these arguments.
#include "factor_readout_plugin.cuh"

// Inputs in the node's order, then sizes, then the output: what TensorRT calls a kernel with.
#define BRAINFAST_FACTOR_READOUT(name, Index)                                                      \
  extern "C" __global__ void __launch_bounds__(brainfast::plugin::kThreads, 2)                     \
      name(const float* __restrict__ local, const float* __restrict__ global,                      \
           const float* __restrict__ weight, const float* __restrict__ coefficient,                \
           const Index* __restrict__ cell, const Index* __restrict__ corners, const Index*,        \
           const Index* __restrict__ vertices, const float* __restrict__ bias, int images,         \
           int layers, int channels, int pixels, int blocks, int block_vertices, int vertex_count, \
           float* __restrict__ output) {                                                           \
    brainfast::plugin::answer(brainfast::plugin::Arguments<Index>{                                 \
        local, global, weight, coefficient, cell, corners, vertices, bias, images, layers,         \
        channels, pixels, blocks, block_vertices, vertex_count, output});                          \
  }

BRAINFAST_FACTOR_READOUT(brainfast_factor_readout_i32, std::int32_t)
BRAINFAST_FACTOR_READOUT(brainfast_factor_readout_i64, std::int64_t)
