// Choosing candidates: score[n,o] = pool[n] . templates[o], and of every objective the k best, in
// one pass over the pool's memory.
//
// The best comes first and equal scores go by their index. The sum of a candidate and an objective
// is made in one order, whatever else is computed beside it: results have the same bits for any
// number of threads. A candidate that is excluded, or whose score is not finite, is never chosen;
// where fewer than k are left, score -inf and index -1 stand in for them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "../runtime/cpu_features.h"

namespace brainfast {

enum class FeatureKind { float32, bfloat16, int8 };

struct CandidatePool {
  std::int64_t candidates;      // N
  std::int64_t features;        // F
  const void* data;             // [N,F]
  FeatureKind kind;             // of data
  const float* scale;           // [N], by which the sums of int8 are multiplied; null otherwise
  const std::uint8_t* exclude;  // [N], not 0 where excluded; or null
};

struct TemplateRows {
  std::int64_t objectives;  // O
  const void* data;         // [O,F]
  FeatureKind kind;         // float32 or bfloat16
};

// What the operands of a product are: fp32 for float32 pools. Other pools are exact in bfloat16,
// so that only the templates decide: bfloat16 ones make it bf16, float32 ones bf16x3, where tiles
// multiply their two halves and other paths the numbers themselves.
Precision topk_precision(FeatureKind pool, FeatureKind templates);

// Whether the machine, or the path of that name, can screen.
bool can_screen(const std::string& wanted);

// `isa` is one that select_isa gives for topk_precision. 0 <= k <= N, F >= 1. `screen`, where
// can_screen, leaves out by rounded products what cannot be chosen: results are the same, sooner.
void score_topk(const CandidatePool& pool, const TemplateRows& templates, std::int64_t k,
                float* scores /* [O,k] */, std::int64_t* indices /* [O,k] */, Isa isa,
                bool screen = false);

class RoundedPool;
class ThreadPool;

// A pool that is asked again and again. The first call that screens rounds it, into a byte a
// feature that later ones read in its place; a pool of int8 is read as it is.
class ScoreTopkPlan {
 public:
  // `pool` must not change while the plan lives; its `exclude` is not looked at.
  explicit ScoreTopkPlan(const CandidatePool& pool);
  ~ScoreTopkPlan();

  // As `score_topk`; from several threads at once too.
  void run(const TemplateRows& templates, std::int64_t k, const std::uint8_t* exclude /* [N] */,
           float* scores /* [O,k] */, std::int64_t* indices /* [O,k] */, Isa isa,
           bool screen = false);

  const CandidatePool& pool() const { return pool_; }
  // Of what is kept beside the pool.
  std::int64_t bytes() const;

 private:
  const RoundedPool* rounded(ThreadPool& threads);

  CandidatePool pool_;
  std::once_flag once_;
  std::unique_ptr<const RoundedPool> kept_;
  std::atomic<const RoundedPool*> rounded_{nullptr};
};

}  // namespace brainfast
