// Sorts the readout's vertices by grid cell and packs what belongs to them.
#pragma once

#include <cstdint>
#include <vector>

#include "../runtime/aligned_buffer.h"
#include "../runtime/thread_pool.h"
#include "factor_readout.h"
#include "factor_readout_kernels.h"

namespace brainfast {

// Vertices of a task: few enough to share out evenly.
inline constexpr std::int64_t kReadoutUnitVertices = 256;

template <class T>
class ReadoutLayout {
 public:
  // `parameters.weight` is only remembered, by the view; pack_weight copies it. A unit holds at
  // most `unit_vertices`.
  ReadoutLayout(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                const ReadoutKernels<T>& kernels, ThreadPool& pool,
                std::int64_t unit_vertices = kReadoutUnitVertices);

  void pack_weight(ThreadPool& pool);
  void forget_weight() { view_.weight = nullptr; }

  const ReadoutView<T>& view() const { return view_; }
  const std::vector<ReadoutUnit>& units() const { return units_; }
  const ReadoutKernels<T>& kernels() const { return *kernels_; }
  std::int64_t groups() const { return groups_; }
  std::int64_t bytes() const;
  std::int64_t corners() const;  // sum over vertices of the tokens that each reads

 private:
  void sort(const ReadoutShape& shape, const T* space);
  void add_cell(const ReadoutShape& shape, std::int64_t index, std::int64_t count);
  void cut_units(std::int64_t vertices);
  void pack_group(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                  const ReadoutCell& cell, std::int64_t group);

  const ReadoutKernels<T>* kernels_;
  ReadoutView<T> view_{};
  std::int64_t groups_ = 0;
  std::vector<ReadoutCell> cells_;
  std::vector<ReadoutUnit> units_;
  AlignedBuffer<std::int32_t> vertex_;
  AlignedBuffer<T> layer_, layer_rows_, corner_, bias_, fraction_, slope_, scale_, weight_;
};

}  // namespace brainfast
