#include "score_topk.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <numeric>
#include <optional>

#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "packed_panels.h"
#include "score_topk_best.h"
#include "score_topk_kernels.h"
#include "score_topk_rounded.h"
#include "score_topk_scores.h"
#include "score_topk_screen.h"
#include "score_topk_templates.h"
#include "score_topk_waiting.h"

namespace brainfast {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kLine = 64;          // bytes that keep the scratch of two threads apart
constexpr std::int64_t kMostRows = 256;     // candidates of a task: templates are read once for it
constexpr std::int64_t kTasksOfThread = 8;  // so that threads end together

// What the numbered buffers of a scratch hold.
enum Buffer { kTemplates, kWork, kBest };

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

#if defined(BRAINFAST_AVX512BF16_KERNELS)
// Where rounded scores pay: they cost a pass of their own and leave a few to be scored.
constexpr std::int64_t kLeastObjectives = 9;
constexpr std::int64_t kLeastFeatures = 64;
// Beyond it the bound of int8, which grows with the root of the features, leaves too many, and
// bfloat16 takes longer than the plain kernel.
constexpr std::int64_t kMostFeatures = 4096;
constexpr std::int64_t kLeastCandidates = 1024;
constexpr std::int64_t kCandidatesOfChoice = 32;
#endif

// A screen's rows are scored while a core's share of the last cache holds them.
constexpr std::int64_t kScreenedBytes = std::int64_t{8} << 20;
constexpr std::int64_t kPairsOfPossible = 8;  // of a task, for each that a screen may leave
constexpr int kMostFailures = 3;              // in a row, until the next screen takes its place
constexpr int kMostDoublings = 5;             // of the tasks that go by before another attempt

// The roundings to try, the coarser first.
struct Roundings {
  std::array<Rounding, 2> kinds{};
  int count = 0;

  void add(Rounding rounding) { kinds[count++] = rounding; }
};

Roundings roundings_of([[maybe_unused]] const CandidatePool& pool,
                       [[maybe_unused]] const TemplateRows& templates,
                       [[maybe_unused]] std::int64_t k, [[maybe_unused]] Isa isa) {
  Roundings found;
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  if ((isa != Isa::avx512 && isa != Isa::avx512bf16) || !__builtin_cpu_supports("avx512vnni")) {
    return found;
  }
  if (templates.objectives < kLeastObjectives) return found;
  if (pool.features < kLeastFeatures || pool.features > kMostFeatures) return found;
  if (pool.candidates < std::max(kLeastCandidates, k * kCandidatesOfChoice)) return found;
  found.add(Rounding::int8);
  // No faster than the plain kernel where that multiplies bfloat16 itself.
  if (isa == Isa::avx512) found.add(Rounding::bfloat16);
#endif
  return found;
}

const ScreenKernels& screen_kernels_of([[maybe_unused]] FeatureKind kind,
                                       [[maybe_unused]] Rounding rounding) {
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  return screen_kernels_avx512bf16(kind, rounding);
#else
  __builtin_unreachable();
#endif
}

// A call: where its memory lies and how its tasks are cut.
class Scoring {
 public:
  Scoring(const CandidatePool& pool, const TemplateRows& templates, std::int64_t k, Isa isa,
          const Roundings& roundings, const RoundedPool* rounded, ThreadPool& threads,
          Scratch& scratch)
      : pool_(pool),
        objectives_(templates.objectives),
        k_(k),
        threads_(threads),
        scores_(pool, templates, kernels_of(pool.kind, isa), parts_of(templates.kind, isa)),
        rows_(rows_of_task(kernels_of(pool.kind, isa).max_rows, roundings.count > 0)),
        most_possible_(rows_ * objectives_ / kPairsOfPossible) {
    for (; levels_ < roundings.count; ++levels_) {
      const Rounding rounding = roundings.kinds[levels_];
      screens_[levels_].emplace(pool, templates, screen_kernels_of(pool.kind, rounding),
                                rounding == Rounding::int8 ? rounded : nullptr, rows_,
                                threads.size());
    }
    place_shared(scratch);
    place_work(scratch);
  }

  void run(float* scores, std::int64_t* indices) {
    scores_.pack_templates(threads_);
    for (int level = 0; level < levels_; ++level) screens_[level]->pack(threads_);
    std::fill_n(shared_bars_, objectives_, -std::numeric_limits<float>::infinity());
    for (int who = 0; who < threads_.size(); ++who) {
      best_of(who).clear();
      waiting_of(who).clear();
      *state_of(who) = {};
    }
    threads_.run(pieces_of(pool_.candidates, rows_), [&](std::int64_t index, int who) {
      const std::int64_t first = index * rows_, rows = std::min(rows_, pool_.candidates - first);
      if (!screen_rows(first, rows, who)) score_rows(first, rows, who);
    });
    if (levels_ > 0) {
      threads_.run(threads_.size(), [&](std::int64_t whose, int who) {
        Best best = best_of(static_cast<int>(whose));
        waiting_of(static_cast<int>(whose)).score_all(scores_, copies_of(who), best);
      });
    }
    for (std::int64_t o = 0; o < objectives_; ++o) merge(o, scores + o * k_, indices + o * k_);
  }

 private:
  // How a thread's screens have done: failures in a row, and the tasks that go by without one.
  struct State {
    int level, failures, rest;
  };

  std::int64_t rows_of_task(std::int64_t step, bool screened) const {
    const std::int64_t some = pieces_of(pool_.candidates, kTasksOfThread * threads_.size());
    const std::int64_t row_bytes = pool_.features * bytes_of(pool_.kind);
    const std::int64_t most = screened ? kScreenedBytes / row_bytes : kMostRows;
    return padded_to(std::clamp<std::int64_t>(std::min(some, most), 1, kMostRows),
                     screened ? std::lcm(step, std::int64_t{kScreenRows}) : step);
  }

  // What all threads read, and what they work in beside that.
  void place_shared(Scratch& scratch) {
    std::int64_t bytes = scores_.packed_bytes();
    for (int level = 0; level < levels_; ++level) bytes += screens_[level]->bytes();
    std::byte* at = scratch.room<std::byte>(kTemplates, bytes);
    scores_.use(at);
    at += scores_.packed_bytes();
    for (int level = 0; level < levels_; ++level) {
      screens_[level]->use(at);
      at += screens_[level]->bytes();
    }
  }

  void place_work(Scratch& scratch) {
    sums_at_ = scores_.copy_bytes();
    possible_at_ = sums_at_ + padded_to(rows_ * objectives_ * kFloat, kLine);
    state_at_ = possible_at_ + padded_to(most_possible_ * std::int64_t{sizeof(Possible)}, kLine);
    waiting_at_ = state_at_ + kLine;
    work_bytes_ = waiting_at_ + Waiting::bytes(objectives_);
    best_bytes_ = Best::bytes(objectives_, k_);
    work_ = scratch.room<std::byte>(kWork, work_bytes_ * threads_.size());
    const std::int64_t merged_bytes = k_ * std::int64_t{sizeof(Choice)};
    best_ = scratch.room<std::byte>(
        kBest, (best_bytes_ + merged_bytes) * threads_.size() + objectives_ * kFloat);
    merged_ = reinterpret_cast<Choice*>(best_ + best_bytes_ * threads_.size());
    shared_bars_ = reinterpret_cast<float*>(merged_ + k_ * threads_.size());
  }

  Best best_of(int who) const { return {best_ + who * best_bytes_, objectives_, k_}; }
  Waiting waiting_of(int who) const {
    return {work_ + who * work_bytes_ + waiting_at_, objectives_};
  }
  std::byte* copies_of(int who) const { return work_ + who * work_bytes_; }
  float* sums_of(int who) const { return reinterpret_cast<float*>(copies_of(who) + sums_at_); }
  State* state_of(int who) const { return reinterpret_cast<State*>(copies_of(who) + state_at_); }

  // False, and nothing done, where there is nothing to compare with yet or too many remain.
  bool screen_rows(std::int64_t first, std::int64_t rows, int who) const {
    if (levels_ == 0) return false;
    State& state = *state_of(who);
    if (state.rest > 0) {
      --state.rest;
      return false;
    }
    Best best = best_of(who);
    auto* const possible = reinterpret_cast<Possible*>(copies_of(who) + possible_at_);
    float* const bars = sums_of(who);
    if (!share_bars(best, bars)) return false;
    const std::int64_t found =
        screens_[state.level]->search(first, rows, bars, who, possible, most_possible_);
    if (found > most_possible_) {
      fail(state);
      return false;
    }
    state.failures = 0;
    Waiting waiting = waiting_of(who);
    for (std::int64_t i = 0; i < found; ++i) {
      waiting.add(possible[i], scores_, copies_of(who), best);
    }
    return true;
  }

  void fail(State& state) const {
    if (++state.failures == kMostFailures && state.level + 1 < levels_) {
      state = {state.level + 1, 0, 0};
    } else {
      state.rest = 1 << std::min(state.failures, kMostDoublings);
    }
  }

  // The highest bar of any thread is one for all: k candidates reach it. False where one is still
  // missing.
  bool share_bars(const Best& best, float* bars) const {
    bool all = true;
    for (std::int64_t o = 0; o < objectives_; ++o) {
      std::atomic_ref<float> shared(shared_bars_[o]);
      float highest = shared.load(std::memory_order_relaxed);
      while (highest < best.bars()[o] &&
             !shared.compare_exchange_weak(highest, best.bars()[o], std::memory_order_relaxed)) {
      }
      bars[o] = std::max(highest, best.bars()[o]);
      all &= bars[o] > -std::numeric_limits<float>::infinity();
    }
    return all;
  }

  void score_rows(std::int64_t first, std::int64_t rows, int who) const {
    const float* sums = sums_of(who);
    scores_.of_rows(first, rows, copies_of(who), sums_of(who));
    Best best = best_of(who);
    for (std::int64_t row = first; row < first + rows; ++row, sums += objectives_) {
      if (!(pool_.exclude && pool_.exclude[row])) best.offer(sums, row);
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
  std::int64_t objectives_, k_;
  ThreadPool& threads_;
  Scores scores_;
  std::int64_t rows_, most_possible_;
  std::array<std::optional<Screen>, 2> screens_;
  int levels_ = 0;
  // Where a thread's things lie in its share of work_, in bytes.
  std::int64_t sums_at_, possible_at_, state_at_, waiting_at_, work_bytes_, best_bytes_;
  std::byte *work_, *best_;
  Choice* merged_;      // every thread's choices of one objective
  float* shared_bars_;  // [O]
};

}  // namespace

Precision topk_precision(FeatureKind pool, FeatureKind templates) {
  if (pool == FeatureKind::float32) return Precision::fp32;
  return templates == FeatureKind::bfloat16 ? Precision::bf16 : Precision::bf16x3;
}

bool can_screen(const std::string& wanted) {
  return select_isa(wanted, Precision::bf16) == Isa::avx512bf16;
}

void score_topk(const CandidatePool& pool, const TemplateRows& templates, std::int64_t k,
                float* scores, std::int64_t* indices, Isa isa, bool screen) {
  if (k == 0 || templates.objectives == 0) return;
  const auto threads = shared_pool();
  BorrowedScratch scratch(threads->shelf());
  const Roundings roundings = screen ? roundings_of(pool, templates, k, isa) : Roundings{};
  Scoring(pool, templates, k, isa, roundings, nullptr, *threads, *scratch).run(scores, indices);
}

ScoreTopkPlan::ScoreTopkPlan(const CandidatePool& pool) : pool_(pool) { pool_.exclude = nullptr; }
ScoreTopkPlan::~ScoreTopkPlan() = default;

void ScoreTopkPlan::run(const TemplateRows& templates, std::int64_t k, const std::uint8_t* exclude,
                        float* scores, std::int64_t* indices, Isa isa, bool screen) {
  if (k == 0 || templates.objectives == 0) return;
  CandidatePool pool = pool_;
  pool.exclude = exclude;
  const auto threads = shared_pool();
  BorrowedScratch scratch(threads->shelf());
  const Roundings roundings = screen ? roundings_of(pool, templates, k, isa) : Roundings{};
  const bool keeps = roundings.count > 0 && pool.kind != FeatureKind::int8;
  const RoundedPool* const rounded = keeps ? this->rounded(*threads) : nullptr;
  Scoring(pool, templates, k, isa, roundings, rounded, *threads, *scratch).run(scores, indices);
}

const RoundedPool* ScoreTopkPlan::rounded(ThreadPool& threads) {
  std::call_once(once_, [&] {
    const ScreenKernels& kernels = screen_kernels_of(pool_.kind, Rounding::int8);
    kept_ = std::make_unique<const RoundedPool>(pool_, kernels, threads);
    rounded_ = kept_.get();
  });
  return rounded_;
}

std::int64_t ScoreTopkPlan::bytes() const {
  const RoundedPool* const rounded = rounded_;
  return rounded ? rounded->bytes() : 0;
}

}  // namespace brainfast
