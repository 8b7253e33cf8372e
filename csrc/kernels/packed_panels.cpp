#include "packed_panels.h"

#include <algorithm>
#include <bit>

#include "bfloat16.h"

namespace brainfast {
namespace {

constexpr int kMostLanes = 16;

// As widen_bfloat16, for loops that become vectors.
inline float wide(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace

PackedPanels::PackedPanels(const float* from, std::int64_t rows, std::int64_t steps,
                           std::int64_t lead, const OperandForm& form, Precision precision,
                           ThreadPool& pool)
    : form_(form),
      rows_(rows),
      steps_(steps),
      lead_(lead),
      depth_(padded_to(lead + steps, form.depth_step)) {
  const std::int64_t groups = pieces_of(rows, form.lanes);
  const std::int64_t size = form.parts * depth_ * form.lanes;
  if (form.bfloat()) {
    halves_.reserve(groups * size);
  } else {
    numbers_.reserve(groups * size);
  }
  pool.run(groups, [&](std::int64_t group, int) {
    if (form_.bfloat()) {
      std::fill_n(halves_.data() + group * size, size, std::uint16_t{0});
    } else {
      std::fill_n(numbers_.data() + group * size, size, 0.0f);
    }
    const std::int64_t begin = group * form_.lanes, end = std::min(begin + form_.lanes, rows_);
    for (std::int64_t row = begin; row < end; ++row) pack_row(from + row * steps_, row, precision);
  });
}

void PackedPanels::pack_row(const float* from, std::int64_t row, Precision precision) {
  for (std::int64_t step = 0; step < steps_; ++step) {
    if (form_.bfloat()) {
      const BFloatHalves halves = split_bfloat16(from[step]);
      halves_.data()[place(row, step, 0)] = halves.high;
      if (form_.parts == 2) halves_.data()[place(row, step, 1)] = halves.low;
    } else {
      round_operands(precision, 1, from + step, numbers_.data() + place(row, step, 0));
    }
  }
}

std::int64_t PackedPanels::place(std::int64_t row, std::int64_t step, int part) const {
  const std::int64_t lanes = form_.lanes, numbers = form_.numbers, at = lead_ + step;
  const std::int64_t panel = (row / lanes * form_.parts + part) * depth_ * lanes;
  return panel + at / numbers * numbers * lanes + numbers * (row % lanes) + at % numbers;
}

void PackedPanels::widen(std::int64_t group, std::int64_t begin, std::int64_t end,
                         float* to) const {
  const std::int64_t lanes = form_.lanes, size = depth_ * lanes, first = group * lanes;
  if (!form_.bfloat()) {
    std::copy_n(numbers_.data() + place(first, begin, 0), (end - begin) * lanes, to);
    return;
  }
  for (std::int64_t step = begin; step < end; ++step, to += lanes) {
    const std::uint16_t* const from = halves_.data() + place(first, step, 0);
    for (std::int64_t lane = 0; lane < lanes; ++lane) to[lane] = wide(from[2 * lane]);
    if (form_.parts == 1) continue;
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      to[lane] += wide(from[size + 2 * lane]);
    }
  }
}

void PackedPanels::unpack(float* to) const {
  const std::int64_t lanes = form_.lanes;
  float panel[kMostLanes];
  for (std::int64_t row = 0; row < rows_; row += lanes) {
    const std::int64_t count = std::min(lanes, rows_ - row);
    for (std::int64_t step = 0; step < steps_; ++step) {
      widen(row / lanes, step, step + 1, panel);
      for (std::int64_t lane = 0; lane < count; ++lane) {
        to[(row + lane) * steps_ + step] = panel[lane];
      }
    }
  }
}

std::int64_t PackedPanels::bytes() const {
  return static_cast<std::int64_t>(numbers_.capacity() * sizeof(float) +
                                   halves_.capacity() * sizeof(std::uint16_t));
}

}  // namespace brainfast
