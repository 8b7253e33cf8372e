#include "align_tokens.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "../runtime/aligned_buffer.h"
#include "../runtime/check.h"
#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "align_tokens_taps.h"

namespace brainfast {
namespace {

constexpr std::int64_t kLine = 16;  // elements that keep the scratch of two threads apart

std::int64_t divide_up(std::int64_t count, std::int64_t unit) { return (count + unit - 1) / unit; }
std::int64_t round_up(std::int64_t count, std::int64_t unit) {
  return divide_up(count, unit) * unit;
}

const AlignKernels& kernels_of(Isa isa) {
#if defined(BRAINFAST_X86_KERNELS)
  if (isa == Isa::avx512) return align_kernels_avx512();
  if (isa == Isa::avx2) return align_kernels_avx2();
#endif
  (void)isa;
  return align_kernels_portable();
}

// weight [D,C_l] -> slices of kAlignSteps channels, each [row blocks, steps, rows of the block].
void pack_rows(const float* weight, std::int64_t channels, std::int64_t trunk_channels,
               std::int64_t max_rows, float* to) {
  for (std::int64_t begin = 0; begin < trunk_channels; begin += kAlignSteps) {
    const std::int64_t end = std::min(begin + kAlignSteps, trunk_channels);
    for (std::int64_t row = 0; row < channels; row += max_rows) {
      const std::int64_t row_end = std::min(row + max_rows, channels);
      for (std::int64_t c = begin; c < end; ++c) {
        for (std::int64_t d = row; d < row_end; ++d) *to++ = weight[d * trunk_channels + c];
      }
    }
  }
}

// weight [D,C_l] -> blocks of at most kAlignColumns vectors, each [C_l, block]; zeros past D.
void pack_columns(const float* weight, std::int64_t channels, std::int64_t trunk_channels,
                  std::int64_t lanes, float* to) {
  const std::int64_t padded = round_up(channels, lanes);
  for (std::int64_t begin = 0; begin < padded; begin += kAlignColumns * lanes) {
    const std::int64_t end = std::min(begin + kAlignColumns * lanes, padded);
    for (std::int64_t c = 0; c < trunk_channels; ++c) {
      for (std::int64_t d = begin; d < end; ++d) {
        *to++ = d < channels ? weight[d * trunk_channels + c] : 0.0f;
      }
    }
  }
}

// The first input with a token that is not finite: local 0, global 0, local 1, ...
class BadInput {
 public:
  void note(std::int64_t layer, bool global) {
    const std::int64_t input = 2 * layer + (global ? 1 : 0);
    std::int64_t known = first_.load(std::memory_order_relaxed);
    while (input < known && !first_.compare_exchange_weak(known, input)) {
    }
  }

  void check() const {
    const std::int64_t input = first_.load();
    if (input == kNone) return;
    fail((input % 2 ? "global_[" : "local[") + std::to_string(input / 2) + "]", "finite tokens",
         "NaN or infinity");
  }

 private:
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_{kNone};
};

// One image's layer in tasks: blocks of target pixels, and parts of the aligned channels.
struct LocalSplit {
  std::int64_t blocks, parts;
};

// What the numbered buffers of a scratch hold.
enum Buffer { kTables, kWork, kTaps };

}  // namespace

struct AlignTokensPlan::State {
  State(const AlignShape& given, const AlignParameters& parameters, Isa chosen);

  void pack(const AlignParameters& parameters);
  // Taps of every layer; where pool_space asks for it, room for the pooled tokens behind them.
  const AlignTaps* prepare(const AlignTokens& tokens, Scratch& scratch, float** pooled) const;
  void align_local(const AlignTokens& tokens, const AlignTaps* taps, const LocalSplit& split,
                   std::int64_t task, float* work, float* local, BadInput& bad) const;
  void align_global(const AlignTokens& tokens, std::int64_t task, float* global,
                    BadInput& bad) const;
  void align_pooled(const AlignTokens& tokens, const float* pooled, std::int64_t task,
                    float* local) const;
  LocalSplit split_of(std::int64_t images, int threads) const;
  void run_plain(const AlignTokens& tokens, const AlignTaps* taps, Scratch& scratch,
                 ThreadPool& pool, float* local, float* global, BadInput& bad) const;
  void run_pooled(const AlignTokens& tokens, const AlignTaps* taps, float* pooled, ThreadPool& pool,
                  float* local, float* global, BadInput& bad) const;

  std::int64_t vector_blocks() const {
    return divide_up(shape.channels, kAlignColumns * kernels.lanes);
  }

  AlignShape shape;
  Isa isa;
  const AlignKernels& kernels;
  std::vector<std::int64_t> trunk_channels;   // [L]
  std::vector<std::int64_t> channels_before;  // [L]
  std::vector<float> offset_local, offset_global;
  AlignedBuffer<float> weight_local, weight_global;
  std::vector<std::int64_t> begin_local, begin_global;  // [L+1]
};

AlignTokensPlan::State::State(const AlignShape& given, const AlignParameters& parameters,
                              Isa chosen)
    : shape(given),
      isa(chosen),
      kernels(kernels_of(chosen)),
      trunk_channels(given.trunk_channels, given.trunk_channels + given.layers),
      offset_local(parameters.offset_local,
                   parameters.offset_local + given.layers * given.channels),
      offset_global(parameters.offset_global,
                    parameters.offset_global + given.layers * given.channels),
      begin_local{0},
      begin_global{0} {
  shape.trunk_channels = trunk_channels.data();
  std::int64_t before = 0;
  const std::int64_t padded = round_up(shape.channels, kernels.lanes);
  for (std::int64_t count : trunk_channels) {
    channels_before.push_back(before);
    before += count;
    const std::int64_t wide = shape.pool_space ? padded : shape.channels;
    begin_local.push_back(begin_local.back() + round_up(count * wide, kLine));
    begin_global.push_back(begin_global.back() + round_up(count * padded, kLine));
  }
  weight_local.reserve(begin_local.back());
  weight_global.reserve(begin_global.back());
  pack(parameters);
}

void AlignTokensPlan::State::pack(const AlignParameters& parameters) {
  shared_pool()->run(2 * shape.layers, [&](std::int64_t task, int) {
    const std::int64_t layer = task / 2, count = trunk_channels[layer];
    const bool global = task % 2;
    const float* const from =
        global ? parameters.bottleneck_global[layer] : parameters.bottleneck_local[layer];
    float* const to = global ? weight_global.data() + begin_global[layer]
                             : weight_local.data() + begin_local[layer];
    if (global || shape.pool_space) {
      pack_columns(from, shape.channels, count, kernels.lanes, to);
    } else {
      pack_rows(from, shape.channels, count, kernels.max_rows, to);
    }
  });
}

const AlignTaps* AlignTokensPlan::State::prepare(const AlignTokens& tokens, Scratch& scratch,
                                                 float** pooled) const {
  const auto same_as_before = [&](std::int64_t layer) {
    if (layer == 0) return false;
    const AlignSource &one = tokens.local[layer], &other = tokens.local[layer - 1];
    return one.height == other.height && one.width == other.width;
  };
  std::int64_t size = 0;
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    if (!same_as_before(layer)) size += taps_size(shape, tokens.local[layer]);
  }
  const std::int64_t rows = channels_before.back() + trunk_channels.back();
  const std::int64_t pooled_size = shape.pool_space ? tokens.images * rows : 0;
  auto* memory = reinterpret_cast<std::byte*>(scratch.room<float>(kTables, size + pooled_size));
  *pooled = reinterpret_cast<float*>(memory) + size;
  AlignTaps* const taps = scratch.room<AlignTaps>(kTaps, shape.layers);
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    if (same_as_before(layer)) {
      taps[layer] = taps[layer - 1];
      continue;
    }
    taps[layer] = make_taps(shape, tokens.local[layer], kernels.lanes, memory);
    memory += taps_size(shape, tokens.local[layer]) * sizeof(float);
  }
  return taps;
}

// Parts of the channels resample the same tokens again, so there are only as many as keep all
// threads at work. No sum depends on them.
LocalSplit AlignTokensPlan::State::split_of(std::int64_t images, int threads) const {
  LocalSplit split{divide_up(shape.pixels(), kAlignPixels), 1};
  const std::int64_t tasks = images * shape.layers * split.blocks;
  while (tasks * split.parts < 3 * threads &&
         2 * split.parts * kernels.max_rows <= shape.channels) {
    split.parts *= 2;
  }
  return split;
}

// Tasks of a layer are neighbours, so that its weights are still in the cache for the next image.
void AlignTokensPlan::State::align_local(const AlignTokens& tokens, const AlignTaps* taps,
                                         const LocalSplit& split, std::int64_t task, float* work,
                                         float* local, BadInput& bad) const {
  const std::int64_t part = task % split.parts, block = task / split.parts % split.blocks;
  const std::int64_t row = task / split.parts / split.blocks;
  const std::int64_t image = row % tokens.images, layer = row / tokens.images;
  const AlignSource& source = tokens.local[layer];
  const std::int64_t image_size = trunk_channels[layer] * source.height * source.width;
  const std::int64_t row_blocks = divide_up(shape.channels, kernels.max_rows);
  AlignLocalTask unit{};
  unit.taps = taps + layer;
  unit.tokens = source.data + image * image_size;
  unit.end = source.data + tokens.images * image_size;
  unit.trunk_channels = trunk_channels[layer];
  unit.weight = weight_local.data() + begin_local[layer];
  unit.offset = offset_local.data() + layer * shape.channels;
  unit.channels = shape.channels;
  unit.target_width = shape.width;
  unit.pixels = shape.pixels();
  unit.block = block;
  unit.row_begin = row_blocks * part / split.parts * kernels.max_rows;
  unit.row_end = std::min(row_blocks * (part + 1) / split.parts * kernels.max_rows, shape.channels);
  unit.output = local + (image * shape.layers + layer) * shape.channels * shape.pixels();
  unit.scratch = work;
  if (!kernels.local(unit)) bad.note(layer, false);
}

void AlignTokensPlan::State::align_global(const AlignTokens& tokens, std::int64_t task,
                                          float* global, BadInput& bad) const {
  const std::int64_t layer = task / vector_blocks();
  AlignVectorTask unit{};
  unit.images = tokens.images;
  unit.tokens = tokens.global[layer];
  unit.trunk_channels = trunk_channels[layer];
  unit.weight = weight_global.data() + begin_global[layer];
  unit.offset = offset_global.data() + layer * shape.channels;
  unit.channels = shape.channels;
  unit.block = task % vector_blocks();
  unit.output = global + layer * shape.channels;
  unit.image_stride = shape.layers * shape.channels;
  if (!kernels.vectors(unit)) bad.note(layer, true);
}

// pooled: [L] of [B,C_l]. They are finite, or their tokens have been refused already.
void AlignTokensPlan::State::align_pooled(const AlignTokens& tokens, const float* pooled,
                                          std::int64_t task, float* local) const {
  const std::int64_t layer = task / vector_blocks();
  AlignVectorTask unit{};
  unit.images = tokens.images;
  unit.tokens = pooled + tokens.images * channels_before[layer];
  unit.trunk_channels = trunk_channels[layer];
  unit.weight = weight_local.data() + begin_local[layer];
  unit.offset = offset_local.data() + layer * shape.channels;
  unit.channels = shape.channels;
  unit.block = task % vector_blocks();
  unit.output = local + layer * shape.channels;
  unit.image_stride = shape.layers * shape.channels;
  kernels.vectors(unit);
}

void AlignTokensPlan::State::run_plain(const AlignTokens& tokens, const AlignTaps* taps,
                                       Scratch& scratch, ThreadPool& pool, float* local,
                                       float* global, BadInput& bad) const {
  const LocalSplit split = split_of(tokens.images, pool.size());
  const std::int64_t locals = tokens.images * shape.layers * split.blocks * split.parts;
  const std::int64_t size = round_up(kernels.local_scratch(shape.channels), kLine);
  float* const work = scratch.room<float>(kWork, size * pool.size());
  // The short tasks come last and fill what the long ones leave.
  pool.run(locals + shape.layers * vector_blocks(), [&](std::int64_t task, int participant) {
    if (task < locals) {
      align_local(tokens, taps, split, task, work + participant * size, local, bad);
    } else {
      align_global(tokens, task - locals, global, bad);
    }
  });
}

void AlignTokensPlan::State::run_pooled(const AlignTokens& tokens, const AlignTaps* taps,
                                        float* pooled, ThreadPool& pool, float* local,
                                        float* global, BadInput& bad) const {
  pool.run(tokens.images * shape.layers, [&](std::int64_t task, int) {
    const std::int64_t image = task % tokens.images, layer = task / tokens.images;
    const std::int64_t count = trunk_channels[layer];
    const AlignSource& source = tokens.local[layer];
    const float* const from = source.data + image * count * source.height * source.width;
    float* const to = pooled + tokens.images * channels_before[layer] + image * count;
    if (!kernels.pool(taps[layer], from, count, to)) bad.note(layer, false);
  });
  const std::int64_t blocks = shape.layers * vector_blocks();
  pool.run(2 * blocks, [&](std::int64_t task, int) {
    if (task < blocks) {
      align_pooled(tokens, pooled, task, local);
    } else {
      align_global(tokens, task - blocks, global, bad);
    }
  });
}

AlignTokensPlan::AlignTokensPlan(const AlignShape& shape, const AlignParameters& parameters,
                                 Isa isa)
    : state_(std::make_unique<State>(shape, parameters, isa)) {}

AlignTokensPlan::~AlignTokensPlan() = default;

void AlignTokensPlan::run(const AlignTokens& tokens, float* local, float* global) const {
  if (tokens.images == 0) return;
  const auto pool = shared_pool();
  BorrowedScratch scratch(pool->shelf());
  BadInput bad;
  float* pooled = nullptr;
  const AlignTaps* const taps = state_->prepare(tokens, *scratch, &pooled);
  if (state_->shape.pool_space) {
    state_->run_pooled(tokens, taps, pooled, *pool, local, global, bad);
  } else {
    state_->run_plain(tokens, taps, *scratch, *pool, local, global, bad);
  }
  bad.check();
}

const AlignShape& AlignTokensPlan::shape() const { return state_->shape; }
Isa AlignTokensPlan::isa() const { return state_->isa; }

std::int64_t AlignTokensPlan::bytes() const {
  return (state_->begin_local.back() + state_->begin_global.back()) * sizeof(float);
}

std::int64_t AlignTokensPlan::flops_per_image() const {
  const std::int64_t rows = state_->channels_before.back() + state_->trunk_channels.back();
  return 2 * rows * state_->shape.channels * (state_->shape.pixels() + 1);
}

}  // namespace brainfast
