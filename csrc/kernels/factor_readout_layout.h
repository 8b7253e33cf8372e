// Sorts the readout's vertices by grid cell and packs what belongs to them.
#pragma once

#include <algorithm>
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
  // A unit holds at most `unit_vertices`. All memory but that of weights is taken here.
  ReadoutLayout(const ReadoutShape& shape, const ReadoutKernels<T>& kernels,
                std::int64_t unit_vertices = kReadoutUnitVertices);
  ReadoutLayout(const ReadoutShape& shape, const ReadoutParameters<T>& parameters,
                const ReadoutKernels<T>& kernels, ThreadPool& pool,
                std::int64_t unit_vertices = kReadoutUnitVertices)
      : ReadoutLayout(shape, kernels, unit_vertices) {
    update(parameters, pool);
  }
  // The view points into this object.
  ReadoutLayout(const ReadoutLayout&) = delete;
  ReadoutLayout& operator=(const ReadoutLayout&) = delete;

  // Sorts and packs parameters of the same sizes. `parameters.weight` is only remembered, by the
  // view; pack_weight copies it. The order depends on these parameters alone, never on earlier
  // ones: by cell, then by the caller's index.
  void update(const ReadoutParameters<T>& parameters, ThreadPool& pool);

  void reserve_weight() { weight_.reserve(most_groups_ * view_.channels * view_.lanes); }
  void pack_weight(ThreadPool& pool);
  void forget_weight() { view_.weight = nullptr; }

  const ReadoutView<T>& view() const { return view_; }
  const std::vector<ReadoutUnit>& units() const { return units_; }
  const ReadoutKernels<T>& kernels() const { return *kernels_; }
  std::int64_t groups() const { return groups_; }
  std::int64_t most_groups() const { return most_groups_; }  // of any order
  std::int64_t most_cells() const { return static_cast<std::int64_t>(cells_.capacity()); }
  std::int64_t bytes() const;
  std::int64_t corners() const;  // sum over vertices of the tokens that each reads

 private:
  std::int64_t unit_groups() const {
    return std::max<std::int64_t>(unit_vertices_ / view_.lanes, 4);
  }
  void locate_vertices(const T* space, ThreadPool& pool);
  void sort();
  void add_cell(std::int64_t index, std::int64_t count);
  void cut_units();
  void pack_group(const ReadoutParameters<T>& parameters, const ReadoutCell& cell,
                  std::int64_t group);

  ReadoutShape shape_;
  const ReadoutKernels<T>* kernels_;
  std::int64_t unit_vertices_;
  ReadoutView<T> view_{};
  std::int64_t groups_ = 0, most_groups_ = 0;
  std::vector<ReadoutCell> cells_;
  std::vector<ReadoutUnit> units_;
  std::vector<std::int64_t> count_, next_;  // [cells], of vertices
  AlignedBuffer<std::int32_t> vertex_;
  AlignedBuffer<std::int32_t> cell_of_;  // [V]
  AlignedBuffer<T> layer_, layer_rows_, corner_, bias_, fraction_, slope_, scale_, weight_;
};

}  // namespace brainfast
