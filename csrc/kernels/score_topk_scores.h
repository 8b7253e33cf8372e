// Scores by the plain kernels: of all objectives for some rows of the pool, or of one objective for
// single rows, in the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../runtime/thread_pool.h"
#include "score_topk_kernels.h"

namespace brainfast {

class Scores {
 public:
  Scores(const CandidatePool& pool, const TemplateRows& templates, const ScoreKernels& kernels,
         int parts);

  std::int64_t packed_bytes() const;
  std::int64_t copy_bytes() const;  // of one thread
  void use(std::byte* packed) { packed_ = packed; }
  void pack_templates(ThreadPool& threads);

  // [rows, O]; `copies` is the caller's room for rows that must be padded.
  void of_rows(std::int64_t first, std::int64_t rows, std::byte* copies, float* to) const;
  // [rows], of one objective; at most PairTask::kRows.
  void of_pairs(std::span<const std::int64_t> rows, std::int64_t objective, std::byte* copies,
                float* to) const;

 private:
  std::int64_t steps_of(std::int64_t begin) const;
  const std::byte* place(std::int64_t row, std::int64_t begin) const;
  void set_features(ScoreTask& task, std::int64_t row, std::int64_t begin, std::byte* copies) const;
  void set_ahead(ScoreTask& task, std::int64_t row, std::int64_t rows, std::int64_t begin) const;
  void scale(std::int64_t row, std::span<float> scores) const;

  const CandidatePool& pool_;
  const TemplateRows& templates_;
  const ScoreKernels& kernels_;
  int parts_;
  std::int64_t padded_;         // objectives
  std::int64_t step_bytes_;     // of packed templates for one feature
  std::int64_t feature_bytes_;  // of one in the pool
  std::byte* packed_ = nullptr;
};

}  // namespace brainfast
