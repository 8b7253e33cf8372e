// A matrix [N, steps] as panels of lanes, packed once: float32 operands, or pairs of bfloat16.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../runtime/aligned_buffer.h"
#include "../runtime/cpu_features.h"
#include "../runtime/thread_pool.h"

namespace brainfast {

inline std::int64_t pieces_of(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

inline std::int64_t padded_to(std::int64_t count, std::int64_t size) {
  return pieces_of(count, size) * size;
}

// How numbers become operands.
struct OperandForm {
  std::int64_t lanes = 1;
  std::int64_t numbers = 1;     // in an operand: 1, or 2 of bfloat16
  std::int64_t depth_step = 1;  // steps are padded to a multiple of it, in numbers
  std::int64_t row_step = 1;    // rows of packed tokens are padded to a multiple of it
  int parts = 1;                // 2: the low halves of bf16x3 come behind the high ones

  bool bfloat() const { return numbers == 2; }
  std::int64_t depth(std::int64_t steps) const { return padded_to(steps, depth_step) / numbers; }
};

// Panels [groups, parts, steps, lanes] of operands.
template <class Operand>
struct Panels {
  const Operand* data;
  std::int64_t group_stride, part_stride;
};

class PackedPanels {
 public:
  // `lead` steps of zeros come first. Numbers are rounded to what `precision` multiplies.
  PackedPanels(const float* from /* [N, steps] */, std::int64_t rows, std::int64_t steps,
               std::int64_t lead, const OperandForm& form, Precision precision, ThreadPool& pool);

  template <class Operand>
  Panels<Operand> panels() const {
    if constexpr (std::is_same_v<Operand, float>) {
      return {numbers_.data(), depth_ * form_.lanes, 0};
    } else {
      const std::int64_t size = depth_ / 2 * form_.lanes;
      return {reinterpret_cast<const Operand*>(halves_.data()), form_.parts * size, size};
    }
  }

  // Steps begin..end of one group as float32, [end - begin, lanes].
  void widen(std::int64_t group, std::int64_t begin, std::int64_t end, float* to) const;
  // Everything, as a matrix [N, steps] of float32.
  void unpack(float* to) const;

  std::int64_t bytes() const;

 private:
  void pack_row(const float* from, std::int64_t row, Precision precision);
  std::int64_t place(std::int64_t row, std::int64_t step, int part) const;

  OperandForm form_;
  std::int64_t rows_, steps_, lead_;
  std::int64_t depth_;  // steps with what pads them
  AlignedBuffer<float> numbers_;
  AlignedBuffer<std::uint16_t> halves_;  // pairs along the steps
};

}  // namespace brainfast
