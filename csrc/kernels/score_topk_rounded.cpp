#include "score_topk_rounded.h"

#include <algorithm>

#include "packed_panels.h"
#include "score_topk_templates.h"

namespace brainfast {

RoundedPool::RoundedPool(const CandidatePool& pool, const ScreenKernels& kernels,
                         ThreadPool& threads)
    : features_(pool.features),
      padded_(padded_to(pool.candidates, kScreenRows)),
      chunks_(pieces_of(pool.features, kScreenChunk)),
      operands_(padded_ * padded_to(pool.features, kScreenDepth)),
      units_(chunks_ * padded_),
      squares_(padded_),
      deviations_(padded_) {
  constexpr std::int64_t kTogether = 8 * kScreenRows;
  threads.run(pieces_of(padded_, kTogether), [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * kTogether, padded_);
    for (std::int64_t row = task * kTogether; row < end; row += kScreenRows) {
      round(pool, kernels, row);
    }
  });
}

void RoundedPool::round(const CandidatePool& pool, const ScreenKernels& kernels, std::int64_t row) {
  std::fill_n(squares_.data() + row, kScreenRows, 0.0f);
  std::fill_n(deviations_.data() + row, kScreenRows, 0.0f);
  for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const std::int64_t begin = chunk * kScreenChunk;
    ScreenTask task{};
    task.rows = std::min<std::int64_t>(kScreenRows, pool.candidates - row);
    task.count = std::min(kScreenChunk, features_ - begin);
    task.steps = steps_of(chunk);
    task.features =
        static_cast<const std::byte*>(pool.data) + (row * features_ + begin) * bytes_of(pool.kind);
    task.feature_stride = features_;
    task.squares = squares_.data() + row;
    task.deviations = deviations_.data() + row;
    std::byte* const to = operands_.data() + place(chunk, row);
    std::fill(to + task.rows * task.steps, to + kScreenRows * task.steps, std::byte{});
    float* const units = units_.data() + chunk * padded_ + row;
    std::fill_n(units, kScreenRows, 0.0f);
    kernels.round(task, to, units);
  }
}

std::int64_t RoundedPool::steps_of(std::int64_t chunk) const {
  return padded_to(std::min(kScreenChunk, features_ - chunk * kScreenChunk), kScreenDepth);
}

// Chunks before it are whole.
std::int64_t RoundedPool::place(std::int64_t chunk, std::int64_t row) const {
  return chunk * kScreenChunk * padded_ + row * steps_of(chunk);
}

const std::byte* RoundedPool::operands(std::int64_t chunk, std::int64_t row) const {
  return operands_.data() + place(chunk, row);
}

const float* RoundedPool::units(std::int64_t chunk, std::int64_t row) const {
  return units_.data() + chunk * padded_ + row;
}

std::int64_t RoundedPool::bytes() const {
  const std::size_t floats = units_.capacity() + squares_.capacity() + deviations_.capacity();
  return static_cast<std::int64_t>(operands_.capacity() + floats * sizeof(float));
}

}  // namespace brainfast
