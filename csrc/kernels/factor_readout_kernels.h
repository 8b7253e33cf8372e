// What the readout's instruction-set objects share: plain structures and a table of functions.
// No inline function lives here, so that none is compiled with one object's flags and run by
// another.
#pragma once

#include <cstdint>

namespace brainfast {

// The vertices whose sampling points lie between the same four pixels, in groups of `lanes`.
struct ReadoutCell {
  std::int64_t group_begin;
  std::int64_t group_end;
  std::int64_t vertex_count;  // padding fills the last group only
  int slots;                  // corners inside the image, then the global tokens
  int pixel[5];               // [slots], height * width for the global tokens
  int corner[5];              // [slots], 0..3 = (y0,x0) (y0,x1) (y1,x0) (y1,x1), 4 = global tokens
};

// A fixed piece of a cell: the work that one task does.
struct ReadoutUnit {
  std::int64_t cell;
  std::int64_t group_begin;
  std::int64_t group_end;
};

// Sorted and packed parameters. G groups, R rows (layers of a register block), Q blocks.
// Tokens are packed as [B][pixel_stride * pixels + global][Q][D][R]; rows past L are zero.
template <class T>
struct ReadoutView {
  std::int64_t vertices, layers, channels, pixels;
  std::int64_t lanes, rows, blocks;
  std::int64_t pixel_stride;   // elements between the pixels of packed tokens
  std::int64_t image_stride;   // elements between its images
  std::int64_t sorted_stride;  // elements between the rows of sorted weights
  const ReadoutCell* cells;
  std::int64_t cell_count;
  const std::int32_t* vertex;  // [G, lanes], the caller's index; -1 where padded
  const T* layer;              // [G, Q*R, lanes]
  const T* layer_rows;         // [G*lanes, Q*R], and a vector that may be read past its end
  const T* corner;             // [G, 5, lanes], a coefficient for each slot of the cell
  const T* bias;               // [G, lanes]
  const T* fraction;           // [G, 2, lanes], x and y inside the cell
  const T* slope;              // [G, 2, lanes], pixels per unit of space; 0 where clamped
  const T* scale;              // [G, lanes]
  const T* packed_weight;      // [G, D, lanes] over D, or null
  const T* weight;             // [V, D], the caller's, where packed_weight is null
};

// Selector and weight gradients of a unit's vertices. Null: not wanted.
template <class T>
struct ReadoutVertexTask {
  std::int64_t images;
  const T* tokens;       // packed
  const T* grad_output;  // [B, V]
  T* space;
  T* layer;
  T* scale;
  T* weight;
  T* scratch;
};

// Token gradients of one image, channels channel_begin..channel_end. Null: not wanted.
template <class T>
struct ReadoutTokenTask {
  std::int64_t channel_begin, channel_end;  // begin: a multiple of the lanes
  const T* sorted_weight;                   // [G*lanes, sorted_stride], from sort_weight
  const T* grad_output;                     // [V], this image's
  T* local;                                 // [L, D, pixels], this image's
  T* global;                                // [L, D], this image's
  T* scratch;
};

template <class T>
struct ReadoutKernels {
  int lanes;
  int max_rows;

  // Channels channel_begin..channel_end of one image into its packed place.
  void (*pack_tokens)(const ReadoutView<T>&, const T* local, const T* global,
                      std::int64_t channel_begin, std::int64_t channel_end, T* packed);
  // Rows of `weight` [V,D] over D -> [D, lanes] for one group of the view.
  void (*pack_weight)(const ReadoutView<T>&, std::int64_t group, const T* weight, T* packed);
  // Elements of scratch that a forward unit needs.
  std::int64_t (*forward_scratch)(const ReadoutView<T>&);
  void (*forward)(const ReadoutView<T>&, const ReadoutUnit&, std::int64_t image_begin,
                  std::int64_t image_end, const T* tokens, T* output, T* scratch);
  std::int64_t (*vertex_scratch)(const ReadoutView<T>&, std::int64_t images);
  void (*vertex_gradients)(const ReadoutView<T>&, const ReadoutUnit&, const ReadoutVertexTask<T>&);
  // Weights over D of one group, packed or not -> [lanes, sorted_stride].
  void (*sort_weight)(const ReadoutView<T>&, std::int64_t group, T* sorted);
  std::int64_t (*token_scratch)(const ReadoutView<T>&, std::int64_t channels);
  void (*token_gradients)(const ReadoutView<T>&, const ReadoutTokenTask<T>&);
  // Runs fused multiply-adds on registers; returns how many floating-point operations they were.
  std::int64_t (*fma_loop)(std::int64_t iterations, T* sink);
};

const ReadoutKernels<float>& readout_kernels_portable();
const ReadoutKernels<double>& readout_kernels_portable_double();
const ReadoutKernels<float>& readout_kernels_avx2();
const ReadoutKernels<float>& readout_kernels_avx512();

}  // namespace brainfast
