// The readout on AVX512-BF16 dot products: a lane multiplies a pair of channels at a time. Tokens
// are packed as pairs too, [B][pixels + global][Q][depth/2][R].
#define BRAINFAST_ISA_NAMESPACE readout_avx512bf16
#include "factor_readout_dots_gradients.h"

namespace brainfast {
namespace readout_avx512bf16 {

void measure(BFloatView& view) {
  constexpr int64_t kPad = 32;  // spreads the pixels over the sets of the cache
  const int64_t size = view.sorted.blocks * view.sorted.rows * view.depth;
  view.pixel_stride = (size + kPad - 1) / kPad * kPad + kPad;
  view.part_stride = (view.sorted.pixels + 1) * view.pixel_stride;
  view.image_stride = view.part_stride;
}

template <int Rows>
void pack_token_pairs(const BFloatView& view, const float* local, const float* global,
                      int64_t channel, int64_t block, std::uint16_t* packed) {
  const ReadoutView<float>& sorted = view.sorted;
  const int64_t layers = smaller(Rows, sorted.layers - block * Rows);
  const bool both = channel + 1 < sorted.channels;
  const int64_t first_row = block * Rows * sorted.channels + channel;
  Word* const to = reinterpret_cast<Word*>(packed) + (block * view.depth + channel) / 2 * Rows;
  const int64_t stride = view.pixel_stride / 2;
  for (int64_t begin = 0; begin < sorted.pixels; begin += kVector) {
    const int64_t count = smaller(kVector, sorted.pixels - begin);
    Words tile[Rows];
    for (int64_t r = 0; r < Rows; ++r) {
      const float* const from = local + (first_row + r * sorted.channels) * sorted.pixels + begin;
      tile[r] = r < layers ? pair_of_pixels(from, sorted.pixels, both, count, 0) : Words{};
    }
    const Word* const words = reinterpret_cast<const Word*>(tile);
    for (int64_t p = 0; p < count; ++p) {
      Word* const pixel = to + (begin + p) * stride;
      BRAINFAST_UNROLL
      for (int r = 0; r < Rows; ++r) pixel[r] = words[r * kVector + p];
    }
  }
  for (int64_t r = 0; r < Rows; ++r) {
    const float* const row = global + first_row + r * sorted.channels;
    to[sorted.pixels * stride + r] = r < layers ? pair_of_row(row, both ? 2 : 1, 0)[0] : 0;
  }
}

void pack_tokens(const BFloatView& view, const float* local, const float* global,
                 int64_t channel_begin, int64_t channel_end, std::uint16_t* packed) {
  with_count<DotMachine::kMaxRows>(view.sorted.rows, [&](auto rows) {
    for (int64_t block = 0; block < view.sorted.blocks; ++block) {
      for (int64_t channel = channel_begin; channel < channel_end; channel += 2) {
        pack_token_pairs<rows.value>(view, local, global, channel, block, packed);
      }
    }
  });
}

int64_t forward_scratch(const BFloatView&) { return 0; }

template <int Rows, int Columns>
void forward_groups(const BFloatView& view, const ReadoutCell& cell, int64_t group,
                    int64_t image_begin, int64_t image_end, const std::uint16_t* tokens,
                    float* response) {
  using M = DotMachine;
  const ReadoutView<float>& sorted = view.sorted;
  const int64_t layer_stride = sorted.blocks * Rows * M::kLanes, steps = view.depth / 2;
  const float mean = 1.0f / static_cast<float>(sorted.channels);
  const float* const layer = sorted.layer + group * layer_stride;
  const float* const corner = sorted.corner + group * 5 * M::kLanes;
  const Word* const weight = reinterpret_cast<const Word*>(view.weight) + group * steps * M::kLanes;
  for (int64_t image = image_begin; image < image_end; ++image) {
    M::Vector answer[Columns] = {};
    for (int slot = 0; slot < cell.slots; ++slot) {
      const Word* x = reinterpret_cast<const Word*>(tokens + image * view.image_stride +
                                                    cell.pixel[slot] * view.pixel_stride);
      M::Vector mixed[Columns] = {};
      for (int64_t block = 0; block < sorted.blocks; ++block, x += steps * Rows) {
        mix_layers<M, Rows, Columns>(x, weight, steps, layer + block * Rows * M::kLanes,
                                     layer_stride, mixed);
      }
      for (int c = 0; c < Columns; ++c) {
        answer[c] += mixed[c] * load<M>(corner + (c * 5 + slot) * M::kLanes);
      }
    }
    float* const to = response + image * view.places + group * M::kLanes;
    for (int c = 0; c < Columns; ++c) {
      const M::Vector bias = load<M>(sorted.bias + (group + c) * M::kLanes);
      store<M>(to + c * M::kLanes, answer[c] * mean + bias);
    }
  }
}

void forward(const BFloatView& view, const ReadoutUnit& unit, int64_t image_begin,
             int64_t image_end, const std::uint16_t* tokens, float* response, float*) {
  const ReadoutCell& cell = view.sorted.cells[unit.cell];
  with_count<DotMachine::kMaxRows>(view.sorted.rows, [&](auto rows) {
    constexpr int kRows = rows.value;
    constexpr int kColumns = DotMachine::columns(kRows);
    int64_t group = unit.group_begin;
    for (; group + kColumns <= unit.group_end; group += kColumns) {
      forward_groups<kRows, kColumns>(view, cell, group, image_begin, image_end, tokens, response);
    }
    for (; group < unit.group_end; ++group) {
      forward_groups<kRows, 1>(view, cell, group, image_begin, image_end, tokens, response);
    }
  });
}

}  // namespace readout_avx512bf16

const BFloatKernels& bfloat_kernels_avx512bf16() {
  namespace here = readout_avx512bf16;
  static constexpr BFloatKernels kernels{2,
                                         256,
                                         here::measure,
                                         here::pack_tokens,
                                         here::pack_weight_pairs,
                                         here::forward_scratch,
                                         here::forward,
                                         here::turned_size,
                                         here::turn_tokens,
                                         here::vertex_scratch,
                                         here::vertex_gradients,
                                         here::pair_vertices,
                                         here::token_scratch,
                                         here::token_gradients};
  return kernels;
}

}  // namespace brainfast
