// Scores, written once over vectors of features: candidates and templates are both read along their
// rows, and the lanes are added up at the end of a chunk. Each instruction-set object compiles its
// own copy, in its own namespace (BRAINFAST_ISA_NAMESPACE).
#pragma once

#include "lanes.h"
#include "score_topk_kernels.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

// A vector at the address of any of `At`.
template <class T, class At, int lanes>
struct LooseVector {
  typedef T Type __attribute__((vector_size(lanes * sizeof(T)), aligned(sizeof(At)), may_alias));
};

// A tile is `rows` candidates by `columns` objectives. A step reads kStep features of each
// candidate, as kParts vectors.
template <int lanes, int rows, int columns>
struct FloatScores : Machine<float, lanes, 0, rows> {
  using Base = Machine<float, lanes, 0, rows>;
  using Vector = typename Base::Vector;
  using Feature = float;
  using Template = float;
  static constexpr int kStep = lanes, kParts = 1;
  static constexpr int kMaxColumns = columns;

  template <int part>
  static BRAINFAST_INLINE Vector load_features(const float* from) {
    return *reinterpret_cast<const typename Base::Loose*>(from);
  }
  static BRAINFAST_INLINE Vector load_template(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
  }
  static BRAINFAST_INLINE void add_product(Vector& sum, Vector a, Vector b) { sum += a * b; }
  static BRAINFAST_INLINE void store_template(const float* from, float* to) {
    for (int i = 0; i < lanes; ++i) to[i] = from[i];
  }
};

// bfloat16 as pairs: the even features, then the odd ones, are one operation away from float32.
template <int lanes, int rows, int columns>
struct BFloatScores : FloatScores<lanes, rows, columns> {
  using Vector = typename FloatScores<lanes, rows, columns>::Vector;
  using Feature = std::uint16_t;
  static constexpr int kStep = 2 * lanes, kParts = 2;

  using Pairs = typename LooseVector<std::uint32_t, Feature, lanes>::Type;

  template <int part>
  static BRAINFAST_INLINE Vector load_features(const Feature* from) {
    const auto pairs = *reinterpret_cast<const Pairs*>(from);
    return reinterpret_cast<Vector>(part == 0 ? pairs << 16 : pairs & 0xffff0000u);
  }
};

// int8 four at a time: two shifts and a conversion bring each of them to float32.
template <int lanes, int rows, int columns>
struct Int8Scores : FloatScores<lanes, rows, columns> {
  using Vector = typename FloatScores<lanes, rows, columns>::Vector;
  using Feature = std::int8_t;
  static constexpr int kStep = 4 * lanes, kParts = 4;

  using Words = typename LooseVector<std::int32_t, Feature, lanes>::Type;

  template <int part>
  static BRAINFAST_INLINE Vector load_features(const Feature* from) {
    const auto whole = *reinterpret_cast<const Words*>(from) << (24 - 8 * part) >> 24;
    return __builtin_convertvector(whole, Vector);
  }
};

// to[i] = the sum over the lanes of vector i, four vectors at a time.
template <class M>
BRAINFAST_INLINE void add_lanes(const float* from, int count, float* to) {
  using Loose = Quad<float>::Loose;
  for (int i = 0; i < count; i += 4) {
    Loose quad[4];
    for (int j = 0; j < 4; ++j) {
      const float* const vector = from + (i + j) * M::kLanes;
      quad[j] = *reinterpret_cast<const Loose*>(vector);
      for (int lane = 4; lane < M::kLanes; lane += 4) {
        quad[j] += *reinterpret_cast<const Loose*>(vector + lane);
      }
    }
    transpose(quad);
    *reinterpret_cast<Loose*>(to + i) = (quad[0] + quad[1]) + (quad[2] + quad[3]);
  }
}

// A step's vectors of every row, from `part` on.
template <class M, int part, int Rows, int Columns>
BRAINFAST_INLINE void add_step(typename M::Vector (&sum)[Rows][Columns],
                               const typename M::Feature* x, int64_t stride,
                               const typename M::Template* w) {
  constexpr int kVector = M::kStep / M::kParts;
  decltype(M::load_template(w)) column[Columns];
  BRAINFAST_UNROLL
  for (int c = 0; c < Columns; ++c) column[c] = M::load_template(w + c * kVector);
  BRAINFAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const auto row = M::template load_features<part>(x + r * stride);
    BRAINFAST_UNROLL
    for (int c = 0; c < Columns; ++c) M::add_product(sum[r][c], row, column[c]);
  }
  if constexpr (part + 1 < M::kParts) {
    add_step<M, part + 1>(sum, x, stride, w + Columns * kVector);
  }
}

// The same of rows that lie anywhere and one objective; `stride` from part to part of it.
template <class M, int part, int Rows>
BRAINFAST_INLINE void add_pairs_step(typename M::Vector (&sum)[Rows][1],
                                     const void* const (&x)[Rows], int64_t step,
                                     const typename M::Template* w, int64_t stride) {
  const auto column = M::load_template(w);
  BRAINFAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const auto* const at = static_cast<const typename M::Feature*>(x[r]) + step;
    M::add_product(sum[r][0], M::template load_features<part>(at), column);
  }
  if constexpr (part + 1 < M::kParts) {
    add_pairs_step<M, part + 1>(sum, x, step, w + stride, stride);
  }
}

// Rows that a later task reads are fetched beside the arithmetic, a little in every step: all at
// once they would stand in the way of the templates.
template <class M, int Rows, int Columns>
__attribute__((noinline)) void score_tile(const ScoreTask& task, int64_t objective,
                                          const char* ahead, int64_t ahead_rows) {
  typename M::Vector sum[Rows][Columns] = {};
  const auto* const x = static_cast<const typename M::Feature*>(task.features);
  const auto* w = static_cast<const typename M::Template*>(task.templates) + objective * task.steps;
  for (int64_t step = 0; step < task.steps; step += M::kStep, w += Columns * M::kStep) {
    for (int64_t r = 0; r < ahead_rows; ++r) {
      const auto offset = step * static_cast<int64_t>(sizeof(typename M::Feature));
      __builtin_prefetch(ahead + r * task.ahead_stride + offset, 0, 2);
    }
    add_step<M, 0>(sum, x + step, task.feature_stride, w);
  }
  constexpr int kSums = (Rows * Columns + 3) / 4 * 4;
  alignas(64) float lanes[kSums * M::kLanes];
  float total[kSums];
  BRAINFAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BRAINFAST_UNROLL
    for (int c = 0; c < Columns; ++c) store<M>(lanes + (r * Columns + c) * M::kLanes, sum[r][c]);
  }
  for (int i = Rows * Columns * M::kLanes; i < kSums * M::kLanes; ++i) lanes[i] = 0;
  add_lanes<M>(lanes, kSums, total);
  for (int r = 0; r < Rows; ++r) {
    float* const to = task.sums + r * task.objectives + objective;
    for (int c = 0; c < Columns; ++c) to[c] += total[r * Columns + c];
  }
}

// Every tile of objectives fetches its share of the rows ahead.
template <class M>
void score(const ScoreTask& task) {
  const int64_t tiles = (task.objectives + M::kMaxColumns - 1) / M::kMaxColumns;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t objective = tile * M::kMaxColumns;
    const int64_t first = task.ahead_rows * tile / tiles;
    const int64_t count = task.ahead_rows * (tile + 1) / tiles - first;
    const char* const ahead = task.ahead + first * task.ahead_stride;
    with_count<M::kMaxRows>(task.rows, [&](auto rows) {
      with_count<M::kMaxColumns>(
          smaller(M::kMaxColumns, task.objectives - objective), [&](auto columns) {
            score_tile<M, rows.value, columns.value>(task, objective, ahead, count);
          });
    });
  }
}

// A pair's sums are made as score_tile makes them: the products of a lane one after another, then
// the lanes.
template <class M>
void score_pairs(PairTask& task) {
  constexpr int kRows = PairTask::kRows, kVector = M::kStep / M::kParts;
  const int64_t first = task.objective / M::kMaxColumns * M::kMaxColumns;
  const int64_t columns = smaller(M::kMaxColumns, task.objectives - first);
  const auto* w = static_cast<const typename M::Template*>(task.templates) + first * task.steps +
                  (task.objective - first) * kVector;
  typename M::Vector sum[kRows][1] = {};
  for (int64_t step = 0; step < task.steps; step += M::kStep) {
    add_pairs_step<M, 0>(sum, task.features, step, w, columns * kVector);
    w += columns * M::kStep;
  }
  alignas(64) float lanes[kRows * M::kLanes];
  float total[kRows];
  BRAINFAST_UNROLL
  for (int r = 0; r < kRows; ++r) store<M>(lanes + r * M::kLanes, sum[r][0]);
  add_lanes<M>(lanes, kRows, total);
  for (int r = 0; r < kRows; ++r) task.sums[r] += total[r];
}

// The objectives of a tile lie beside each other, a vector at a time:
// [tiles, steps / kStep, kParts, columns of the tile, kStep / kParts].
template <class M>
void pack_template(const float* from, int64_t count, int64_t steps, int64_t objective,
                   int64_t objectives, int, void* to) {
  constexpr int kVector = M::kStep / M::kParts;
  const int64_t first = objective / M::kMaxColumns * M::kMaxColumns;
  const int64_t columns = smaller(M::kMaxColumns, objectives - first);
  auto* const tile = static_cast<typename M::Template*>(to) + first * steps;
  for (int64_t step = 0; step < steps; step += M::kStep) {
    float numbers[M::kStep] = {};
    const float* at = from + step;
    if (count - step < M::kStep) {
      for (int64_t i = step; i < count; ++i) numbers[i - step] = from[i];
      at = numbers;
    }
    for (int part = 0; part < M::kParts; ++part) {
      float vector[kVector];
      for (int i = 0; i < kVector; ++i) vector[i] = at[i * M::kParts + part];
      M::store_template(vector,
                        tile + step * columns + (part * columns + objective - first) * kVector);
    }
  }
}

template <class M>
constexpr ScoreKernels make_score_kernels() {
  return {M::kStep, M::kMaxRows,   1, 1, sizeof(typename M::Template), pack_template<M>,
          score<M>, score_pairs<M>};
}

// For every kind of features.
template <int lanes, int rows, int columns>
const ScoreKernels& kernels_of(FeatureKind kind) {
  static constexpr ScoreKernels floats = make_score_kernels<FloatScores<lanes, rows, columns>>();
  static constexpr ScoreKernels bfloats = make_score_kernels<BFloatScores<lanes, rows, columns>>();
  static constexpr ScoreKernels bytes = make_score_kernels<Int8Scores<lanes, rows, columns>>();
  switch (kind) {
    case FeatureKind::bfloat16:
      return bfloats;
    case FeatureKind::int8:
      return bytes;
    default:
      return floats;
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
