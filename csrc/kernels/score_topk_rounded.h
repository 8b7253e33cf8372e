// The candidates as a screen multiplies them, rounded once: for pools that are asked again and
// again.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../runtime/aligned_buffer.h"
#include "../runtime/thread_pool.h"
#include "score_topk_kernels.h"

namespace brainfast {

class RoundedPool {
 public:
  // `kernels` are those with `round` and `multiply`.
  RoundedPool(const CandidatePool& pool, const ScreenKernels& kernels, ThreadPool& threads);

  // Of kScreenRows candidates from `row` on, a multiple of it: [kScreenRows, steps] and [rows].
  const std::byte* operands(std::int64_t chunk, std::int64_t row) const;
  const float* units(std::int64_t chunk, std::int64_t row) const;
  // [candidates], of all features; see ScreenTask.
  const float* squares() const { return squares_.data(); }
  const float* deviations() const { return deviations_.data(); }
  std::int64_t bytes() const;

 private:
  std::int64_t place(std::int64_t chunk, std::int64_t row) const;
  std::int64_t steps_of(std::int64_t chunk) const;
  void round(const CandidatePool& pool, const ScreenKernels& kernels, std::int64_t row);

  std::int64_t features_, padded_, chunks_;
  AlignedBuffer<std::byte> operands_;          // [chunks][padded candidates, steps]
  AlignedBuffer<float> units_;                 // [chunks, padded candidates]
  AlignedBuffer<float> squares_, deviations_;  // [padded candidates]
};

}  // namespace brainfast
