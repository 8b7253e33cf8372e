// Choosing candidates: score[n,o] = pool[n] . templates[o], and of every objective the k best, in
// one pass over the pool's memory.
//
// The best comes first and equal scores go by their index. The sum of a candidate and an objective
// is made in one order, whatever else is computed beside it: results have the same bits for any
// number of threads. A candidate that is excluded, or whose score is not finite, is never chosen;
// where fewer than k are left, score -inf and index -1 stand in for them.
#pragma once

#include <cstdint>
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

}  // namespace brainfast
