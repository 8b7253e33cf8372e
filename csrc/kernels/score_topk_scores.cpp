#include "score_topk_scores.h"

#include <algorithm>

#include "packed_panels.h"
#include "score_topk_templates.h"

namespace brainfast {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kChunk = 2048;  // features whose templates stay in a core's cache

// One row's features as the kernels may read them, zeros behind the real ones.
void copy_padded(const std::byte* from, std::int64_t bytes, std::int64_t padded, std::byte* to) {
  std::copy_n(from, bytes, to);
  std::fill(to + bytes, to + padded, std::byte{});
}

}  // namespace

Scores::Scores(const CandidatePool& pool, const TemplateRows& templates,
               const ScoreKernels& kernels, int parts)
    : pool_(pool),
      templates_(templates),
      kernels_(kernels),
      parts_(parts),
      padded_(padded_to(templates.objectives, kernels.objective_step)),
      step_bytes_(padded_ * parts * kernels.template_bytes),
      feature_bytes_(bytes_of(pool.kind)) {}

std::int64_t Scores::packed_bytes() const {
  return padded_to(step_bytes_ * padded_to(pool_.features, kernels_.depth_step), kLine);
}

std::int64_t Scores::copy_bytes() const {
  const std::int64_t rows = std::max<std::int64_t>(kernels_.max_rows, PairTask::kRows);
  return padded_to(rows * kChunk * feature_bytes_, kLine);
}

std::int64_t Scores::steps_of(std::int64_t begin) const {
  return padded_to(std::min(kChunk, pool_.features - begin), kernels_.depth_step);
}

void Scores::pack_templates(ThreadPool& threads) {
  threads.run(pieces_of(pool_.features, kChunk), [&](std::int64_t chunk, int) {
    const std::int64_t begin = chunk * kChunk, count = std::min(kChunk, pool_.features - begin);
    for (std::int64_t o = 0; o < padded_; ++o) {
      float numbers[kChunk];
      const bool real = o < templates_.objectives;
      if (real) read_template(templates_, o * pool_.features + begin, count, numbers);
      kernels_.pack(numbers, real ? count : 0, steps_of(begin), o, templates_.objectives, parts_,
                    packed_ + begin * step_bytes_);
    }
  });
}

void Scores::of_rows(std::int64_t first, std::int64_t rows, std::byte* copies, float* to) const {
  const std::int64_t objectives = templates_.objectives;
  std::fill_n(to, rows * objectives, 0.0f);
  for (std::int64_t begin = 0; begin < pool_.features; begin += kChunk) {
    for (std::int64_t row = 0; row < rows; row += kernels_.max_rows) {
      ScoreTask task{};
      task.rows = std::min<std::int64_t>(kernels_.max_rows, rows - row);
      task.objectives = objectives;
      task.steps = steps_of(begin);
      task.templates = packed_ + begin * step_bytes_;
      task.parts = parts_;
      task.sums = to + row * objectives;
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
  for (std::int64_t row = 0; row < rows; ++row) {
    scale(first + row, {to + row * objectives, static_cast<std::size_t>(objectives)});
  }
}

void Scores::of_pairs(std::span<const std::int64_t> rows, std::int64_t objective, std::byte* copies,
                      float* to) const {
  PairTask task{};
  task.objective = objective;
  task.objectives = templates_.objectives;
  for (std::int64_t begin = 0; begin < pool_.features; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, pool_.features - begin);
    task.steps = steps_of(begin);
    task.templates = packed_ + begin * step_bytes_;
    for (std::size_t i = 0; i < PairTask::kRows; ++i) {
      const std::byte* const from = place(rows[std::min(i, rows.size() - 1)], begin);
      task.features[i] = from;
      if (count == task.steps) continue;
      std::byte* const copy = copies + static_cast<std::int64_t>(i) * kChunk * feature_bytes_;
      copy_padded(from, count * feature_bytes_, task.steps * feature_bytes_, copy);
      task.features[i] = copy;
    }
    kernels_.score_pairs(task);
  }
  std::copy_n(task.sums, rows.size(), to);
  for (std::size_t i = 0; i < rows.size(); ++i) scale(rows[i], {to + i, 1});
}

const std::byte* Scores::place(std::int64_t row, std::int64_t begin) const {
  return static_cast<const std::byte*>(pool_.data) +
         (row * pool_.features + begin) * feature_bytes_;
}

// Where they lie, or else, where the kernel would read past their end, in a padded copy.
void Scores::set_features(ScoreTask& task, std::int64_t row, std::int64_t begin,
                          std::byte* copies) const {
  const std::int64_t count = std::min(kChunk, pool_.features - begin);
  task.features = place(row, begin);
  task.feature_stride = pool_.features;
  if (count == task.steps && task.rows % kernels_.row_step == 0) return;
  const std::int64_t bytes = count * feature_bytes_, padded = task.steps * feature_bytes_;
  for (std::int64_t r = 0; r < padded_to(task.rows, kernels_.row_step); ++r) {
    const std::int64_t real = r < task.rows ? bytes : 0;
    copy_padded(place(row + std::min(r, task.rows - 1), begin), real, padded, copies + r * padded);
  }
  task.features = copies;
  task.feature_stride = task.steps;
}

void Scores::set_ahead(ScoreTask& task, std::int64_t row, std::int64_t rows,
                       std::int64_t begin) const {
  task.ahead = reinterpret_cast<const char*>(place(row, begin));
  task.ahead_rows = std::min<std::int64_t>(kernels_.max_rows, rows);
  task.ahead_stride = pool_.features * feature_bytes_;
}

void Scores::scale(std::int64_t row, std::span<float> scores) const {
  if (!pool_.scale) return;
  for (float& score : scores) score *= pool_.scale[row];
}

}  // namespace brainfast
