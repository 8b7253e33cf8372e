#include <algorithm>
#include <string>

#include "../runtime/check.h"
#include "score_topk_cuda.h"
#include "score_topk_device.cuh"

namespace brainfast::cuda {
namespace topk {
namespace {

constexpr std::int64_t kMostParts = 2048;

std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

void check_size(const char* name, std::int64_t value, std::int64_t most) {
  check(value >= 1 && value <= most, name, ("1 to " + std::to_string(most)).c_str(),
        std::to_string(value));
}

// Lists of at most so many blocks are kept.
std::int64_t most_parts(std::int64_t candidates) {
  return std::min(pieces(candidates, kRows), kMostParts);
}

}  // namespace
}  // namespace topk

std::int64_t topk_bytes(std::int64_t candidates, std::int64_t objectives, std::int64_t k) {
  topk::check_size("candidates", candidates, (std::int64_t{1} << 31) - topk::kRows);
  topk::check_size("objectives", objectives, std::int64_t{1} << 20);
  topk::check_size("k", k, std::min(candidates, kMostChoices));
  return topk::most_parts(candidates) * objectives * k *
         static_cast<std::int64_t>(sizeof(float) + sizeof(int));
}

void score_topk(const CandidatePool& pool, std::int64_t objectives, const float* templates,
                std::int64_t k, const Memory& scratch, float* scores, std::int64_t* indices,
                const Queue& queue) {
  const std::int64_t bytes = topk_bytes(pool.candidates, objectives, k);
  check(scratch.data && scratch.bytes >= bytes, "scratch",
        (std::to_string(bytes) + " bytes").c_str(), std::to_string(scratch.bytes));
  topk::check_size("features", pool.features, std::int64_t{1} << 40);
  const device::DeviceGuard guard(queue.device);
  const std::int64_t groups = topk::pieces(objectives, topk::kColumns);
  const std::int64_t resident =
      device::resident_blocks(topk::keep_best, topk::kThreads, sizeof(topk::SharedTile));
  const std::int64_t parts =
      std::clamp<std::int64_t>(resident / groups, 1, topk::most_parts(pool.candidates));
  auto* const kept = static_cast<float*>(scratch.data);
  const topk::Lists lists{kept, reinterpret_cast<int*>(kept + parts * objectives * k),
                          static_cast<int>(parts)};
  const int size = pool.kind == FeatureKind::float32    ? 4
                   : pool.kind == FeatureKind::bfloat16 ? 2
                                                        : 1;
  const bool whole_rows =
      reinterpret_cast<std::uintptr_t>(pool.data) % 16 == 0 && pool.features * size % 16 == 0;
  const topk::ScoreArguments arguments{pool,
                                       templates,
                                       static_cast<int>(objectives),
                                       static_cast<int>(k),
                                       static_cast<int>(groups),
                                       whole_rows,
                                       lists};
  device::launch("score_topk", topk::keep_best, static_cast<int>(parts * groups), topk::kThreads,
                 sizeof(topk::SharedTile), queue.stream, arguments);
  device::launch("score_topk", topk::merge_best, static_cast<int>(objectives), topk::kThreads,
                 sizeof(topk::SharedMerge) + parts * sizeof(int), queue.stream, lists,
                 static_cast<int>(objectives), static_cast<int>(k), scores, indices);
}

}  // namespace brainfast::cuda
