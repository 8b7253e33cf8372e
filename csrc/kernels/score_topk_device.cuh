// The kernels of score_topk: blocks score their candidates and keep the best of them, then a block
// for each objective merges what they kept.
#pragma once

#include <cstdint>

#include "../runtime/device.h"
#include "score_topk_cuda.h"

namespace brainfast::cuda::topk {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 64;     // candidates of a tile
constexpr int kColumns = 32;  // objectives of a block
constexpr int kDepth = 32;    // features in shared memory at a time
constexpr int kRowStride = kRows + 4, kColumnStride = kColumns + 4;
constexpr int kSummed = 8;  // stages summed from zero, then added: keeps rounding errors small
constexpr float kLargest = 3.402823466e38f;
constexpr float kNothing = -__builtin_huge_valf();

// What blocks keep, best first: [parts, k, O].
struct Lists {
  float* scores;
  int* indices;  // -1: none
  int parts;
};

struct ScoreArguments {
  CandidatePool pool;
  const float* templates;  // [O,F]
  int objectives, k, groups;
  bool whole_rows;  // rows begin at multiples of 16 bytes
  Lists lists;
};

struct SharedTile {
  float x[kDepth][kRowStride];     // features of the candidates
  float w[kDepth][kColumnStride];  // of the templates
  float scores[kRows][kColumns + 1];
};

__device__ inline float from_bits(unsigned bits) {
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

// Sixteen features of a row from `begin` on; zeros past the last.
__device__ inline void load_features(const ScoreArguments& a, std::int64_t row, std::int64_t begin,
                                     float (&to)[16]) {
  const std::int64_t at = row * a.pool.features + begin, left = a.pool.features - begin;
  const bool whole = a.whole_rows && left >= 16;
  if (a.pool.kind == FeatureKind::float32) {
    const float* const from = static_cast<const float*>(a.pool.data) + at;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 four{0, 0, 0, 0};
      if (whole) {
        four = reinterpret_cast<const float4*>(from)[i];
      } else {
        if (4 * i + 0 < left) four.x = from[4 * i + 0];
        if (4 * i + 1 < left) four.y = from[4 * i + 1];
        if (4 * i + 2 < left) four.z = from[4 * i + 2];
        if (4 * i + 3 < left) four.w = from[4 * i + 3];
      }
      to[4 * i + 0] = four.x;
      to[4 * i + 1] = four.y;
      to[4 * i + 2] = four.z;
      to[4 * i + 3] = four.w;
    }
  } else if (a.pool.kind == FeatureKind::bfloat16) {
    const unsigned short* const from = static_cast<const unsigned short*>(a.pool.data) + at;
    unsigned words[8] = {};
    if (whole) {
      memcpy(words, __builtin_assume_aligned(from, 16), sizeof words);
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (i < left) words[i / 2] |= static_cast<unsigned>(from[i]) << 16 * (i % 2);
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      to[i] = from_bits(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
  } else {
    const signed char* const from = static_cast<const signed char*>(a.pool.data) + at;
    signed char bytes[16] = {};
    if (whole) {
      memcpy(bytes, __builtin_assume_aligned(from, 16), sizeof bytes);
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (i < left) bytes[i] = from[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) to[i] = bytes[i];
  }
}

// What a thread brings to shared memory for a stage: half of a candidate's features, and a quarter
// of an objective's.
struct Stage {
  float x[16];
  float w[8];

  __device__ void load(const ScoreArguments& a, std::int64_t first_row, int first_column,
                       std::int64_t begin) {
    const int thread = static_cast<int>(threadIdx.x);
    const std::int64_t row = first_row + thread / 2;
#pragma unroll
    for (float& number : x) number = 0;
    const std::int64_t from = begin + thread % 2 * 16;
    if (row < a.pool.candidates && from < a.pool.features) load_features(a, row, from, x);
    const int column = first_column + thread / 4;
    const float* const numbers = a.templates + column * a.pool.features;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::int64_t feature = begin + 4 * i + thread % 4;
      w[i] = column < a.objectives && feature < a.pool.features ? numbers[feature] : 0;
    }
  }

  __device__ void store(SharedTile& tile) const {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < 16; ++i) tile.x[thread % 2 * 16 + i][thread / 2] = x[i];
#pragma unroll
    for (int i = 0; i < 8; ++i) tile.w[4 * i + thread % 4][thread / 4] = w[i];
  }
};

// Four candidates times four objectives.
struct Sums {
  float at[4][4] = {};

  __device__ void add_products(const SharedTile& tile) {
    const int row = static_cast<int>(threadIdx.x) / 8 * 4;
    const int column = static_cast<int>(threadIdx.x) % 8 * 4;
#pragma unroll 8
    for (int f = 0; f < kDepth; ++f) {
      const float4 x4 = *reinterpret_cast<const float4*>(&tile.x[f][row]);
      const float4 w4 = *reinterpret_cast<const float4*>(&tile.w[f][column]);
      const float x[4] = {x4.x, x4.y, x4.z, x4.w}, w[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
      for (int i = 0; i < 16; ++i) at[i / 4][i % 4] += x[i / 4] * w[i % 4];
    }
  }

  __device__ void add(const Sums& other) {
#pragma unroll
    for (int i = 0; i < 16; ++i) at[i / 4][i % 4] += other.at[i / 4][i % 4];
  }
};

// All scores of a tile, into shared memory. Ends at a barrier.
__device__ inline void score_tile(const ScoreArguments& a, SharedTile& tile, std::int64_t first_row,
                                  int first_column) {
  Sums total, some;
  Stage stage;
  stage.load(a, first_row, first_column, 0);
  int stages = 0;
  for (std::int64_t begin = 0; begin < a.pool.features; begin += kDepth) {
    __syncthreads();
    stage.store(tile);
    __syncthreads();
    // The next stage's reads run beside this one's products.
    stage.load(a, first_row, first_column, begin + kDepth);
    some.add_products(tile);
    if (++stages % kSummed == 0) {
      total.add(some);
      some = Sums();
    }
  }
  total.add(some);
  const int row = static_cast<int>(threadIdx.x) / 8 * 4;
  const int column = static_cast<int>(threadIdx.x) % 8 * 4;
#pragma unroll
  for (int i = 0; i < 16; ++i) tile.scores[row + i / 4][column + i % 4] = total.at[i / 4][i % 4];
  __syncthreads();
}

// The list of one objective in this block, best first, kept by one thread. Candidates come in
// ascending order, so that of equal scores the lower index stays ahead.
class List {
 public:
  __device__ List(const ScoreArguments& a, int part, int objective)
      : stride_(a.objectives),
        k_(a.k),
        scores_(a.lists.scores + static_cast<std::int64_t>(part) * a.k * stride_ + objective),
        indices_(a.lists.indices + static_cast<std::int64_t>(part) * a.k * stride_ + objective) {}

  __device__ void offer(float score, int index) {
    const bool finite = score >= -kLargest && score <= kLargest;
    if (!finite || (count_ == k_ && score <= worst_)) return;
    std::int64_t place = count_ < k_ ? count_++ : k_ - 1;
    for (; place > 0 && scores_[(place - 1) * stride_] < score; --place) {
      set(place, scores_[(place - 1) * stride_], indices_[(place - 1) * stride_]);
    }
    set(place, score, index);
    worst_ = scores_[(count_ - 1) * stride_];
  }

  __device__ void fill() const {
    for (std::int64_t place = count_; place < k_; ++place) set(place, kNothing, -1);
  }

 private:
  __device__ void set(std::int64_t place, float score, int index) const {
    scores_[place * stride_] = score;
    indices_[place * stride_] = index;
  }

  std::int64_t stride_;
  int k_, count_ = 0;
  float worst_ = 0;
  float* scores_;
  int* indices_;
};

// A block has one group of objectives and every parts-th tile of candidates.
__global__ void __launch_bounds__(kThreads) keep_best(ScoreArguments a) {
  SharedTile& tile = *reinterpret_cast<SharedTile*>(device::shared_memory());
  const int part = static_cast<int>(blockIdx.x) / a.groups;
  const int first_column = static_cast<int>(blockIdx.x) % a.groups * kColumns;
  const int thread = static_cast<int>(threadIdx.x), objective = first_column + thread;
  const bool keeps = thread < kColumns && objective < a.objectives;
  List list(a, part, keeps ? objective : 0);
  const std::int64_t step = static_cast<std::int64_t>(a.lists.parts) * kRows;
  for (std::int64_t first = static_cast<std::int64_t>(part) * kRows; first < a.pool.candidates;
       first += step) {
    score_tile(a, tile, first, first_column);
    for (int row = 0; keeps && row < kRows && first + row < a.pool.candidates; ++row) {
      if (a.pool.exclude && a.pool.exclude[first + row]) continue;
      const float score = tile.scores[row][thread];
      list.offer(a.pool.scale ? score * a.pool.scale[first + row] : score,
                 static_cast<int>(first) + row);
    }
  }
  if (keeps) list.fill();
}

struct Choice {
  float score;
  int index, part;

  // Whether this one goes before the other. Of nothing, the index is -1.
  __device__ bool before(const Choice& other) const {
    if (index < 0 || other.index < 0) return other.index < 0 && index >= 0;
    return score > other.score || (score == other.score && index < other.index);
  }
};

struct SharedMerge {
  Choice best[kWarps];
};

// The best of what all threads hand over, the same to all.
__device__ inline Choice best_of_block(Choice choice, SharedMerge& shared) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const Choice other{__shfl_xor_sync(0xffffffffu, choice.score, mask),
                       __shfl_xor_sync(0xffffffffu, choice.index, mask),
                       __shfl_xor_sync(0xffffffffu, choice.part, mask)};
    if (other.before(choice)) choice = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = choice;
  __syncthreads();
  choice = shared.best[0];
  for (int warp = 1; warp < kWarps; ++warp) {
    if (shared.best[warp].before(choice)) choice = shared.best[warp];
  }
  return choice;
}

// A block an objective. Each thread looks after every kThreads-th list, of which the first `heads`
// are taken.
__global__ void __launch_bounds__(kThreads)
    merge_best(Lists lists, int objectives, int k, float* scores, std::int64_t* indices) {
  SharedMerge& shared = *reinterpret_cast<SharedMerge*>(device::shared_memory());
  int* const heads = reinterpret_cast<int*>(&shared + 1);
  const int objective = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const auto first_of = [&]() {
    Choice best{kNothing, -1, -1};
    for (int part = thread; part < lists.parts; part += kThreads) {
      if (heads[part] == k) continue;
      const std::int64_t at =
          (static_cast<std::int64_t>(part) * k + heads[part]) * objectives + objective;
      const Choice choice{lists.scores[at], lists.indices[at], part};
      if (choice.before(best)) best = choice;
    }
    return best;
  };
  for (int part = thread; part < lists.parts; part += kThreads) heads[part] = 0;
  Choice mine = first_of();
  for (int place = 0; place < k; ++place) {
    const Choice best = best_of_block(mine, shared);
    if (thread == 0) {
      scores[static_cast<std::int64_t>(objective) * k + place] = best.score;
      indices[static_cast<std::int64_t>(objective) * k + place] = best.index;
    }
    if (best.index >= 0 && best.part % kThreads == thread) {
      ++heads[best.part];
      mine = first_of();
    }
  }
}

}  // namespace brainfast::cuda::topk
