#include "score_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "bfloat16.h"
#include "packed_panels.h"
#include "score_topk_kernels.h"

namespace brainfast {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kLine = 64;          // bytes that keep the scratch of two threads apart
constexpr std::int64_t kChunk = 2048;       // features whose templates stay in a core's cache
constexpr std::int64_t kMostRows = 256;     // candidates of a task: templates are read once for it
constexpr std::int64_t kTasksOfThread = 8;  // so that threads end together

// What the numbered buffers of a scratch hold.
enum Buffer { kTemplates, kWork, kBest };

struct Choice {
  float score;
  std::int64_t index;
};

// A total order, so that the k best of some choices are the same in whatever order they came.
bool better(const Choice& a, const Choice& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

// The k best so far of each objective, for one thread: heaps whose first is the worst.
class Best {
 public:
  Best(std::byte* memory, std::int64_t objectives, std::int64_t k)
      : objectives_(objectives),
        k_(k),
        heaps_(reinterpret_cast<Choice*>(memory)),
        counts_(reinterpret_cast<std::int64_t*>(heaps_ + objectives * k)),
        bars_(reinterpret_cast<float*>(counts_ + objectives)) {}

  static std::int64_t bytes(std::int64_t objectives, std::int64_t k) {
    const std::int64_t each = sizeof(std::int64_t) + sizeof(float);
    return padded_to(objectives * (k * static_cast<std::int64_t>(sizeof(Choice)) + each), kLine);
  }

  void clear() {
    std::fill_n(counts_, objectives_, 0);
    std::fill_n(bars_, objectives_, -std::numeric_limits<float>::infinity());
  }

  // Scores of one candidate, [O].
  void offer(const float* scores, std::int64_t index) {
    bool any = false;
    for (std::int64_t o = 0; o < objectives_; ++o) any |= scores[o] >= bars_[o];
    if (!any) return;
    for (std::int64_t o = 0; o < objectives_; ++o) {
      if (scores[o] >= bars_[o] && std::isfinite(scores[o])) insert(o, {scores[o], index});
    }
  }

  std::span<const Choice> of(std::int64_t objective) const {
    return {heaps_ + objective * k_, static_cast<std::size_t>(counts_[objective])};
  }

 private:
  void insert(std::int64_t objective, const Choice& choice) {
    Choice* const heap = heaps_ + objective * k_;
    std::int64_t& count = counts_[objective];
    if (count == k_) {
      if (!better(choice, heap[0])) return;
      std::pop_heap(heap, heap + count--, better);
    }
    heap[count++] = choice;
    std::push_heap(heap, heap + count, better);
    if (count == k_) bars_[objective] = heap[0].score;
  }

  std::int64_t objectives_, k_;
  Choice* heaps_;         // [O,k]
  std::int64_t* counts_;  // [O]
  float* bars_;           // [O], what a score must reach
};

std::int64_t bytes_of(FeatureKind kind) {
  switch (kind) {
    case FeatureKind::float32:
      return 4;
    case FeatureKind::bfloat16:
      return 2;
    default:
      return 1;
  }
}

const ScoreKernels& kernels_of(FeatureKind kind, Isa isa) {
#if defined(BRAINFAST_AMX_KERNELS)
  if (isa == Isa::amx) return score_kernels_amx(kind);
#endif
  if (isa == Isa::amx_emulated) return score_kernels_amx_emulated(kind);
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  if (isa == Isa::avx512bf16) return score_kernels_avx512bf16(kind);
#endif
#if defined(BRAINFAST_X86_KERNELS)
  if (isa == Isa::avx512) return score_kernels_avx512(kind);
  if (isa == Isa::avx2) return score_kernels_avx2(kind);
#endif
  return score_kernels_portable(kind);
}

// Tiles multiply bfloat16, so that float32 templates come in two parts.
int parts_of(FeatureKind templates, Isa isa) {
  return isa >= Isa::amx && templates == FeatureKind::float32 ? 2 : 1;
}

// A call: where its memory lies and how its tasks are cut.
class Scoring {
 public:
  Scoring(const CandidatePool& pool, const TemplateRows& templates, std::int64_t k, Isa isa,
          ThreadPool& threads, Scratch& scratch)
      : pool_(pool),
        templates_(templates),
        k_(k),
        kernels_(kernels_of(pool.kind, isa)),
        parts_(parts_of(templates.kind, isa)),
        threads_(threads),
        padded_(padded_to(templates.objectives, kernels_.objective_step)),
        step_bytes_(padded_ * parts_ * kernels_.template_bytes),
        feature_bytes_(bytes_of(pool.kind)),
        best_bytes_(Best::bytes(templates.objectives, k)) {
    const std::int64_t some = pieces_of(pool.candidates, kTasksOfThread * threads.size());
    rows_ = padded_to(std::clamp<std::int64_t>(some, 1, kMostRows), kernels_.max_rows);
    copy_bytes_ = padded_to(kernels_.max_rows * kChunk * feature_bytes_, kLine);
    work_bytes_ = copy_bytes_ + padded_to(rows_ * templates.objectives * kFloat, kLine);
    packed_ = scratch.room<std::byte>(kTemplates,
                                      step_bytes_ * padded_to(pool.features, kernels_.depth_step));
    work_ = scratch.room<std::byte>(kWork, work_bytes_ * threads.size());
    best_ = scratch.room<std::byte>(
        kBest, (best_bytes_ + k * std::int64_t{sizeof(Choice)}) * threads.size());
    merged_ = reinterpret_cast<Choice*>(best_ + best_bytes_ * threads.size());
  }

  void run(float* scores, std::int64_t* indices) {
    pack_templates();
    for (int who = 0; who < threads_.size(); ++who) best_of(who).clear();
    threads_.run(pieces_of(pool_.candidates, rows_), [&](std::int64_t index, int who) {
      score_rows(index * rows_, std::min(rows_, pool_.candidates - index * rows_), who);
    });
    for (std::int64_t o = 0; o < templates_.objectives; ++o) {
      merge(o, scores + o * k_, indices + o * k_);
    }
  }

 private:
  Best best_of(int who) const { return {best_ + who * best_bytes_, templates_.objectives, k_}; }

  std::int64_t steps_of(std::int64_t begin) const {
    return padded_to(std::min(kChunk, pool_.features - begin), kernels_.depth_step);
  }

  void pack_templates() {
    threads_.run(pieces_of(pool_.features, kChunk), [&](std::int64_t chunk, int) {
      const std::int64_t begin = chunk * kChunk, count = std::min(kChunk, pool_.features - begin);
      for (std::int64_t o = 0; o < padded_; ++o) {
        float numbers[kChunk];
        const bool real = o < templates_.objectives;
        if (real) read_template(o * pool_.features + begin, count, numbers);
        kernels_.pack(numbers, real ? count : 0, steps_of(begin), o, templates_.objectives, parts_,
                      packed_ + begin * step_bytes_);
      }
    });
  }

  void read_template(std::int64_t at, std::int64_t count, float* to) const {
    if (templates_.kind == FeatureKind::float32) {
      std::copy_n(static_cast<const float*>(templates_.data) + at, count, to);
    } else {
      const auto* const from = static_cast<const std::uint16_t*>(templates_.data) + at;
      std::transform(from, from + count, to, widen_bfloat16);
    }
  }

  void score_rows(std::int64_t first, std::int64_t rows, int who) {
    std::byte* const copies = work_ + who * work_bytes_;
    auto* const sums = reinterpret_cast<float*>(copies + copy_bytes_);
    std::fill_n(sums, rows * templates_.objectives, 0.0f);
    for (std::int64_t begin = 0; begin < pool_.features; begin += kChunk) {
      for (std::int64_t row = 0; row < rows; row += kernels_.max_rows) {
        ScoreTask task{};
        task.rows = std::min<std::int64_t>(kernels_.max_rows, rows - row);
        task.objectives = templates_.objectives;
        task.steps = steps_of(begin);
        task.templates = packed_ + begin * step_bytes_;
        task.parts = parts_;
        task.sums = sums + row * task.objectives;
        set_features(task, first + row, begin, copies);
        const std::int64_t next = row + kernels_.max_rows;
        if (next < rows) {
          set_ahead(task, first + next, rows - next, begin);
        } else if (begin + kChunk < pool_.features) {
          set_ahead(task, first, rows, begin + kChunk);
        }
        kernels_.score(task);
      }
    }
    offer(sums, first, rows, who);
  }

  const std::byte* place(std::int64_t row, std::int64_t begin) const {
    return static_cast<const std::byte*>(pool_.data) +
           (row * pool_.features + begin) * feature_bytes_;
  }

  // Where they lie, or else, where the kernel would read past their end, in a padded copy.
  void set_features(ScoreTask& task, std::int64_t row, std::int64_t begin,
                    std::byte* copies) const {
    const std::int64_t count = std::min(kChunk, pool_.features - begin);
    task.features = place(row, begin);
    task.feature_stride = pool_.features;
    if (count == task.steps && task.rows % kernels_.row_step == 0) return;
    const std::int64_t bytes = count * feature_bytes_, padded = task.steps * feature_bytes_;
    for (std::int64_t r = 0; r < padded_to(task.rows, kernels_.row_step); ++r) {
      std::byte* const to = copies + r * padded;
      const std::int64_t real = r < task.rows ? bytes : 0;
      std::copy_n(place(row + std::min(r, task.rows - 1), begin), real, to);
      std::fill(to + real, to + padded, std::byte{});
    }
    task.features = copies;
    task.feature_stride = task.steps;
  }

  void set_ahead(ScoreTask& task, std::int64_t row, std::int64_t rows, std::int64_t begin) const {
    task.ahead = reinterpret_cast<const char*>(place(row, begin));
    task.ahead_rows = std::min<std::int64_t>(kernels_.max_rows, rows);
    task.ahead_stride = pool_.features * feature_bytes_;
  }

  void offer(float* sums, std::int64_t first, std::int64_t rows, int who) const {
    Best best = best_of(who);
    const std::int64_t objectives = templates_.objectives;
    for (std::int64_t row = first; row < first + rows; ++row, sums += objectives) {
      if (pool_.exclude && pool_.exclude[row]) continue;
      if (pool_.scale) {
        for (std::int64_t o = 0; o < objectives; ++o) sums[o] *= pool_.scale[row];
      }
      best.offer(sums, row);
    }
  }

  void merge(std::int64_t objective, float* scores, std::int64_t* indices) const {
    std::int64_t count = 0;
    for (int who = 0; who < threads_.size(); ++who) {
      const auto some = best_of(who).of(objective);
      std::copy(some.begin(), some.end(), merged_ + count);
      count += static_cast<std::int64_t>(some.size());
    }
    const std::int64_t chosen = std::min(count, k_);
    std::partial_sort(merged_, merged_ + chosen, merged_ + count, better);
    for (std::int64_t i = 0; i < k_; ++i) {
      const bool there = i < chosen;
      scores[i] = there ? merged_[i].score : -std::numeric_limits<float>::infinity();
      indices[i] = there ? merged_[i].index : -1;
    }
  }

  const CandidatePool& pool_;
  const TemplateRows& templates_;
  std::int64_t k_;
  const ScoreKernels& kernels_;
  int parts_;
  ThreadPool& threads_;
  std::int64_t padded_;         // objectives
  std::int64_t step_bytes_;     // of packed templates for one feature
  std::int64_t feature_bytes_;  // of one in the pool
  std::int64_t best_bytes_, rows_, copy_bytes_, work_bytes_;
  std::byte *packed_, *work_, *best_;
  Choice* merged_;  // every thread's choices of one objective
};

}  // namespace

Precision topk_precision(FeatureKind pool, FeatureKind templates) {
  if (pool == FeatureKind::float32) return Precision::fp32;
  return templates == FeatureKind::bfloat16 ? Precision::bf16 : Precision::bf16x3;
}

void score_topk(const CandidatePool& pool, const TemplateRows& templates, std::int64_t k,
                float* scores, std::int64_t* indices, Isa isa) {
  if (k == 0 || templates.objectives == 0) return;
  const auto threads = shared_pool();
  BorrowedScratch scratch(threads->shelf());
  Scoring(pool, templates, k, isa, *threads, *scratch).run(scores, indices);
}

}  // namespace brainfast
