// Choosing candidates on a CUDA device. Pointers are to the device's memory, all of it the
// caller's, and work goes to the caller's stream: a call waits for nothing, allocates nothing and
// can be captured in a graph. Results are the same bits on every run and every device: the sum of a
// candidate and an objective is made in one order, in float32.
#pragma once

#include <cstdint>

#include "cuda_call.h"
#include "score_topk.h"

namespace brainfast::cuda {

// Lists of choices are kept in order as they grow, so they should be short.
constexpr std::int64_t kMostChoices = 1024;

// Of the scratch memory that a call takes. Sizes beyond 32-bit counters, or k beyond kMostChoices,
// throw std::invalid_argument.
std::int64_t topk_bytes(std::int64_t candidates, std::int64_t objectives, std::int64_t k);

// Two launches. Results are those of score_topk; templates are float32. N, O and k from 1 on.
void score_topk(const CandidatePool& pool, std::int64_t objectives,
                const float* templates /* [O,F] */, std::int64_t k, const Memory& scratch,
                float* scores /* [O,k] */, std::int64_t* indices /* [O,k] */, const Queue& queue);

}  // namespace brainfast::cuda
