// Brings parameters, tokens and the gradient of y into the form that the products read.
#pragma once

#include "factor_readout_order.cuh"

namespace brainfast::cuda {

// What belongs to the vertex at each place of the order, its weights apart.
__global__ void pack_vertices(Vertices p, const float* __restrict__ space /* [V,2] */,
                              const float* __restrict__ layer /* [V,L] */,
                              const float* __restrict__ scale /* [V] */,
                              const float* __restrict__ bias /* [V] */) {
  const int place = blockIdx.x * blockDim.x + threadIdx.x;
  const int vertices = p.vertices;
  if (place >= vertices) return;
  const std::int64_t v = p.order[place];
  const Position x = locate(space[2 * v], p.width, p.align_corners);
  const Position y = locate(space[2 * v + 1], p.height, p.align_corners);
  const float whole = scale[v], rest = 1 - whole;
  p.coefficient[place] = (1 - x.fraction) * (1 - y.fraction) * rest;
  p.coefficient[vertices + place] = x.fraction * (1 - y.fraction) * rest;
  p.coefficient[2 * vertices + place] = (1 - x.fraction) * y.fraction * rest;
  p.coefficient[3 * vertices + place] = x.fraction * y.fraction * rest;
  p.coefficient[4 * vertices + place] = whole;
  p.fraction[place] = x.fraction;
  p.fraction[vertices + place] = y.fraction;
  p.slope[place] = x.slope;
  p.slope[vertices + place] = y.slope;
  p.scale[place] = whole;
  p.bias[place] = bias[v];
  for (std::int64_t l = 0; l < p.layers; ++l) {
    p.layer[l * vertices + place] = layer[v * p.layers + l];
  }
}

// A thread for every piece of every row.
__global__ void pack_weight(Vertices p, const void* __restrict__ weight /* [V,D] */, Kind kind,
                            Precision precision) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int piece = static_cast<int>(index % kRowPieces);
  const std::int64_t row = index / kRowPieces;
  if (row >= static_cast<std::int64_t>(p.slices) * (p.vertices + 1)) return;
  const int place = static_cast<int>(row % (p.vertices + 1));
  const int first = static_cast<int>(row / (p.vertices + 1)) * slice_channels(precision);
  const std::int64_t v = place < p.vertices ? p.order[place] : -1;
  *reinterpret_cast<uint4*>(p.weight + row * kRowBytes + piece * 16) =
      pack_piece(piece, precision, [&](int channel) {
        const int d = first + channel;
        return v >= 0 && d < p.channels ? load_number(weight, v * p.channels + d, kind) : 0.0f;
      });
}

// A block for two neighbouring pieces of the rows of an image and layer, in a slice: threads side
// by side read the same channels of neighbouring pixels, and each fills a sector of memory.
__global__ void pack_tokens(Vertices p, TokenRows x,
                            const void* __restrict__ local /* [B,L,D,H,W] */,
                            const void* __restrict__ global /* [B,L,D] */, Kind kind,
                            Precision precision) {
  const int pair = static_cast<int>(blockIdx.x) % kRowPairs;
  int rest = static_cast<int>(blockIdx.x) / kRowPairs;
  const int layer = rest % p.layers;
  rest /= p.layers;
  const int images = x.groups << x.shift, image = rest % images, slice = rest / images;
  const int pixels = p.pixels(), lanes = 1 << x.shift;
  const int first = slice * slice_channels(precision);
  const std::int64_t token = (static_cast<std::int64_t>(image) * p.layers + layer) * p.channels;
  // One past the pixels is for the global tokens, another one for the zero row.
  const int last = layer == 0 && image == 0 ? pixels + 1 : pixels;
  for (int pixel = threadIdx.x; pixel <= last; pixel += blockDim.x) {
    const bool whole = pixel == pixels, real = image < x.images && pixel <= pixels;
    const void* const from = whole ? global : local;
    const std::int64_t source = whole ? token : token * pixels + pixel, step = whole ? 1 : pixels;
    const std::int64_t at = static_cast<std::int64_t>(image >> x.shift) * (pixels + 1) + pixel;
    const std::int64_t row =
        pixel > pixels ? x.rows - 1 : ((at * p.layers + layer) << x.shift) + (image & (lanes - 1));
    unsigned char* const to = x.data + (slice * x.rows + row) * kRowBytes;
    for (int piece = 2 * pair; piece < 2 * pair + 2; ++piece) {
      *reinterpret_cast<uint4*>(to + piece * 16) = pack_piece(piece, precision, [&](int channel) {
        const int d = first + channel;
        return real && d < p.channels ? load_number(from, source + d * step, kind) : 0.0f;
      });
    }
  }
}

// The gradient of y over D, in the order of the vertices and with images past the last zero; and
// the gradient of the bias, where wanted.
__global__ void pack_grad_output(Vertices p, TokenRows x,
                                 const float* __restrict__ grad_output /* [B,V] */,
                                 float* __restrict__ sorted /* [groups*lanes,V] */,
                                 float* __restrict__ grad_bias /* [V] */) {
  const int place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place >= p.vertices) return;
  const std::int64_t v = p.order[place], vertices = p.vertices;
  float sum = 0;
  for (int image = 0; image < x.groups << x.shift; ++image) {
    const float grad = image < x.images ? grad_output[image * vertices + v] : 0.0f;
    sum += grad;
    sorted[image * vertices + place] = grad / static_cast<float>(p.channels);
  }
  if (grad_bias) grad_bias[v] = sum;
}

}  // namespace brainfast::cuda
