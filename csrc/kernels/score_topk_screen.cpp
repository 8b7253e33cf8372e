#include "score_topk_screen.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "packed_panels.h"
#include "score_topk_templates.h"

namespace brainfast {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kLine = 64;
constexpr std::int64_t kChunk = kScreenChunk;

// Of the plain kernels' sums and of what is done once to a score, with room to spare.
constexpr double kOtherRoundings = 1024;

double sum_of_squares(const float* numbers, std::int64_t count) {
  std::array<double, 8> sums{};  // apart, so that they need not wait for each other
  for (std::int64_t i = 0; i < count; ++i) sums[i % 8] += double{numbers[i]} * numbers[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

Screen::Screen(const CandidatePool& pool, const TemplateRows& templates,
               const ScreenKernels& kernels, const RoundedPool* rounded, std::int64_t rows,
               int threads)
    : pool_(pool),
      templates_(templates),
      kernels_(kernels),
      rounded_(rounded),
      rows_(rows),
      padded_(padded_to(templates.objectives, kScreenColumns)),
      chunks_(pieces_of(pool.features, kChunk)) {
  packed_ = take(chunks_ * chunk_bytes(kChunk));
  norms_ = take(2 * chunks_ * padded_ * std::int64_t{sizeof(double)});
  of_norm_ = take(padded_ * kFloat);
  of_deviation_ = take(padded_ * kFloat);
  least_ = take(padded_ * kFloat);
  works_ = bytes_;
  work_bytes_ = take_work();
  bytes_ = works_ + threads * work_bytes_;
}

std::int64_t Screen::take(std::int64_t bytes) {
  const std::int64_t offset = bytes_;
  bytes_ += padded_to(bytes, kLine);
  return offset;
}

std::int64_t Screen::take_work() {
  bytes_ = 0;
  take(kScreenRows * 2 * kChunk);  // operands
  sums_ = take(rows_ * padded_ * kFloat);
  squares_ = take(rows_ * kFloat);
  deviations_ = take(rows_ * kFloat);
  bars_ = take(padded_ * kFloat);
  reached_ = take(padded_ / kScreenColumns);
  return bytes_;
}

Screen::Work Screen::work_of(int who) const {
  const std::int64_t begin = works_ + who * work_bytes_;
  return {at<std::byte>(begin),        at<float>(begin + sums_),
          at<float>(begin + squares_), at<float>(begin + deviations_),
          at<float>(begin + bars_),    at<std::uint8_t>(begin + reached_)};
}

std::int64_t Screen::steps_of(std::int64_t begin) const {
  return padded_to(std::min(kChunk, pool_.features - begin), kScreenDepth);
}

// A unit and a start for each objective come before the words.
std::int64_t Screen::chunk_bytes(std::int64_t steps) const {
  return padded_ * (2 + steps / kernels_.numbers) * std::int64_t{sizeof(std::uint32_t)};
}

void Screen::pack(ThreadPool& threads) {
  // Objectives that share a line of memory stay in one task.
  constexpr std::int64_t kTogether = 16;
  const std::int64_t groups = pieces_of(padded_, kTogether);
  threads.run(chunks_ * groups, [&](std::int64_t task, int) {
    const std::int64_t begin = task % groups * kTogether;
    for (std::int64_t o = begin; o < std::min(begin + kTogether, padded_); ++o) {
      pack_objective(task / groups, o);
    }
  });
  for (std::int64_t o = 0; o < padded_; ++o) bound(o);
}

void Screen::pack_objective(std::int64_t chunk, std::int64_t objective) {
  const std::int64_t begin = chunk * kChunk;
  const bool real = objective < templates_.objectives;
  const std::int64_t count = real ? std::min(kChunk, pool_.features - begin) : 0;
  float numbers[kChunk];
  if (real) read_template(templates_, objective * pool_.features + begin, count, numbers);
  double* const norms = at<double>(norms_) + 2 * (chunk * padded_ + objective);
  norms[0] = sum_of_squares(numbers, count);
  kernels_.pack(numbers, count, steps_of(begin), objective, padded_,
                at<std::byte>(packed_) + chunk * chunk_bytes(kChunk));
  norms[1] = sum_of_squares(numbers, count);
}

void Screen::bound(std::int64_t objective) {
  double whole = 0, left = 0;
  for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const double* const norms = at<double>(norms_) + 2 * (chunk * padded_ + objective);
    whole += norms[0];
    left += norms[1];
  }
  whole = std::sqrt(whole);
  left = std::sqrt(left);
  const double features = static_cast<double>(pool_.features);
  const double roundings =
      static_cast<double>(kernels_.most_roundings * (kChunk / kernels_.numbers) + 2 * chunks_);
  const double unit = 0x1p-24 * (roundings + kOtherRoundings);
  const double of_norm = left + unit * (2 * whole + left), of_deviation = (1 + unit) * whole;
  constexpr double kOwn = 1 + 0x1p-8;
  at<float>(of_norm_)[objective] = static_cast<float>(kOwn * of_norm);
  at<float>(of_deviation_)[objective] = static_cast<float>(kOwn * of_deviation);
  const double least = 0x1p-52 * std::sqrt(features) * (of_norm + of_deviation);
  at<float>(least_)[objective] = static_cast<float>(kOwn * least + features * 0x1p-120);
}

// What does not depend on where the candidates are read.
ScreenTask Screen::task_of(std::int64_t chunk, std::int64_t row, std::int64_t rows,
                           const Work& work) const {
  ScreenTask task{};
  task.rows = std::min<std::int64_t>(kScreenRows, rows - row);
  task.objectives = padded_;
  task.count = std::min(kChunk, pool_.features - chunk * kChunk);
  task.steps = steps_of(chunk * kChunk);
  task.templates = at<std::byte>(packed_) + chunk * chunk_bytes(kChunk);
  task.sums = work.sums + row * padded_;
  return task;
}

void Screen::score(std::int64_t first, std::int64_t rows, const Work& work) const {
  const std::int64_t bytes = bytes_of(pool_.kind), groups = padded_to(rows, kScreenRows);
  std::fill_n(work.squares, groups, 0.0f);
  std::fill_n(work.deviations, groups, 0.0f);
  const auto place = [&](std::int64_t chunk, std::int64_t row) {
    const auto* const data = static_cast<const std::byte*>(pool_.data);
    return data + ((first + row) * pool_.features + chunk * kChunk) * bytes;
  };
  for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
    for (std::int64_t row = 0; row < rows; row += kScreenRows) {
      ScreenTask task = task_of(chunk, row, rows, work);
      task.features = place(chunk, row);
      task.feature_stride = pool_.features;
      task.operands = work.operands;
      task.squares = work.squares + row;
      task.deviations = work.deviations + row;
      const bool more = row + kScreenRows < rows;
      if (more || chunk + 1 < chunks_) {
        const std::int64_t next = more ? row + kScreenRows : 0;
        task.ahead = reinterpret_cast<const char*>(place(more ? chunk : chunk + 1, next));
        task.ahead_rows = std::min<std::int64_t>(kScreenRows, rows - next);
        task.ahead_stride = pool_.features * bytes;
      }
      kernels_.screen(task);
    }
  }
}

void Screen::score_rounded(std::int64_t first, std::int64_t rows, const Work& work) const {
  for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
    for (std::int64_t row = 0; row < rows; row += kScreenRows) {
      ScreenTask task = task_of(chunk, row, rows, work);
      if (row + kScreenRows < rows) {
        const auto* const next = rounded_->operands(chunk, first + row + kScreenRows);
        task.ahead = reinterpret_cast<const char*>(next);
        task.ahead_rows = kScreenRows;
        task.ahead_stride = task.steps;
      }
      kernels_.multiply(task, rounded_->operands(chunk, first + row),
                        rounded_->units(chunk, first + row));
    }
  }
}

std::int64_t Screen::search(std::int64_t first, std::int64_t rows, const float* bars, int who,
                            Possible* to, std::int64_t most) const {
  const Work work = work_of(who);
  std::fill_n(work.sums, padded_to(rows, kScreenRows) * padded_, 0.0f);
  rounded_ ? score_rounded(first, rows, work) : score(first, rows, work);
  const float* const squares = rounded_ ? rounded_->squares() + first : work.squares;
  const float* const deviations = rounded_ ? rounded_->deviations() + first : work.deviations;
  std::copy_n(bars, templates_.objectives, work.bars);
  std::fill(work.bars + templates_.objectives, work.bars + padded_,
            std::numeric_limits<float>::infinity());
  ReachTask task{};
  task.objectives = padded_;
  task.of_norm = at<float>(of_norm_);
  task.of_deviation = at<float>(of_deviation_);
  task.least = at<float>(least_);
  task.bars = work.bars;
  task.reached = work.reached;
  std::int64_t found = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (pool_.exclude && pool_.exclude[first + row]) continue;
    task.norm = std::sqrt(squares[row]);
    task.deviation = std::sqrt(deviations[row]);
    task.scale = pool_.scale ? pool_.scale[first + row] : 1;
    task.sums = work.sums + row * padded_;
    kernels_.reach(task);
    for (std::int64_t byte = 0; byte < padded_ / kScreenColumns; ++byte) {
      for (unsigned bits = work.reached[byte]; bits != 0; bits &= bits - 1) {
        const std::int64_t objective = byte * kScreenColumns + std::countr_zero(bits);
        if (objective >= templates_.objectives) break;
        if (found < most) to[found] = {first + row, objective, task.sums[objective]};
        ++found;
      }
    }
    if (found > most) return found;
  }
  return found;
}

}  // namespace brainfast
