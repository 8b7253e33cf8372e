#include "factor_readout_layout.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>

#include "../runtime/check.h"

namespace brainfast {
namespace {

// Where a coordinate falls between pixels `index` and `index + 1`.
struct Position {
  std::int64_t index;
  double fraction;
  double slope;  // pixels per unit of the coordinate
};

// In double, so that a float sampling point lands in the cell that exact arithmetic gives.
// Past the border ring nothing is read: there the position is held at the ring's far edge, where
// the one pixel inside the image has coefficient zero.
Position locate(double coordinate, std::int64_t size, bool align_corners) {
  const double pixel = align_corners ? (coordinate + 1) / 2 * static_cast<double>(size - 1)
                                     : ((coordinate + 1) * static_cast<double>(size) - 1) / 2;
  const double slope = static_cast<double>(align_corners ? size - 1 : size) / 2;
  const double held = std::clamp(pixel, -1.0, static_cast<double>(size));
  const std::int64_t below = held < 0 ? -1 : static_cast<std::int64_t>(held);
  const std::int64_t index = std::min(below, size - 1);
  const bool inside = pixel >= -1 && pixel < static_cast<double>(size);
  return {index, held - static_cast<double>(index), inside ? slope : 0.0};
}

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

template <class T>
[[noreturn]] void fail_at_first_bad(const T* space, std::int64_t vertices) {
  std::int64_t v = 0;
  while (v < vertices && std::isfinite(space[2 * v]) && std::isfinite(space[2 * v + 1])) ++v;
  fail("space", "finite sampling points",
       std::to_string(space[2 * v]) + ", " + std::to_string(space[2 * v + 1]) + " at vertex " +
           std::to_string(v));
}

}  // namespace

template <class T>
ReadoutLayout<T>::ReadoutLayout(const ReadoutShape& shape, const ReadoutKernels<T>& kernels,
                                std::int64_t unit_vertices)
    : shape_(shape), kernels_(&kernels), unit_vertices_(unit_vertices) {
  constexpr std::int64_t kPad = 16;  // spreads the pixels over the sets of the cache
  check(shape.vertices <= std::numeric_limits<std::int32_t>::max() / 2, "space",
        "fewer than 2^30 vertices", std::to_string(shape.vertices));
  view_.vertices = shape.vertices;
  view_.layers = shape.layers;
  view_.channels = shape.channels;
  view_.pixels = shape.pixels();
  view_.lanes = kernels.lanes;
  view_.blocks = (shape.layers + kernels.max_rows - 1) / kernels.max_rows;
  view_.rows = (shape.layers + view_.blocks - 1) / view_.blocks;
  const std::int64_t padded = view_.blocks * view_.rows;
  view_.pixel_stride = round_up(padded * shape.channels, kPad) + kPad;
  view_.image_stride = (view_.pixels + 1) * view_.pixel_stride;
  // A vector more than the channels fill, which spreads the rows over the sets of the cache.
  view_.sorted_stride = round_up(shape.channels, view_.lanes) + view_.lanes;

  const std::int64_t cells =
      std::min((shape.height + 1) * (shape.width + 1), std::max<std::int64_t>(shape.vertices, 1));
  most_groups_ = std::min(shape.vertices, shape.vertices / view_.lanes + cells);
  count_.resize((shape.height + 1) * (shape.width + 1));
  next_.resize(count_.size());
  cells_.reserve(cells);
  units_.reserve(most_groups_ / unit_groups() + cells);
  cell_of_.reserve(shape.vertices);
  const std::int64_t wide = most_groups_ * view_.lanes;
  vertex_.reserve(wide);
  layer_.reserve(wide * padded);
  layer_rows_.reserve(wide * padded + view_.lanes);
  corner_.reserve(wide * 5);
  bias_.reserve(wide);
  fraction_.reserve(wide * 2);
  slope_.reserve(wide * 2);
  scale_.reserve(wide);
  view_.vertex = vertex_.data();
  view_.layer = layer_.data();
  view_.layer_rows = layer_rows_.data();
  view_.corner = corner_.data();
  view_.bias = bias_.data();
  view_.fraction = fraction_.data();
  view_.slope = slope_.data();
  view_.scale = scale_.data();
}

template <class T>
void ReadoutLayout<T>::update(const ReadoutParameters<T>& parameters, ThreadPool& pool) {
  locate_vertices(parameters.space, pool);
  sort();
  cut_units();
  view_.cells = cells_.data();
  view_.cell_count = static_cast<std::int64_t>(cells_.size());
  std::fill_n(layer_rows_.data() + groups_ * view_.lanes * view_.blocks * view_.rows, view_.lanes,
              T(0));
  pool.run(static_cast<std::int64_t>(units_.size()), [&](std::int64_t task, int) {
    const ReadoutUnit& unit = units_[task];
    for (std::int64_t group = unit.group_begin; group < unit.group_end; ++group) {
      pack_group(parameters, cells_[unit.cell], group);
    }
  });
  view_.weight = parameters.weight;
}

template <class T>
void ReadoutLayout<T>::locate_vertices(const T* space, ThreadPool& pool) {
  constexpr std::int64_t kPiece = 4096;
  std::atomic<bool> finite{true};
  pool.run((shape_.vertices + kPiece - 1) / kPiece, [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * kPiece, shape_.vertices);
    for (std::int64_t v = task * kPiece; v < end; ++v) {
      const double x = static_cast<double>(space[2 * v]), y = static_cast<double>(space[2 * v + 1]);
      if (!std::isfinite(x) || !std::isfinite(y)) {
        finite = false;
        return;
      }
      const std::int64_t column = locate(x, shape_.width, shape_.align_corners).index + 1;
      const std::int64_t row = locate(y, shape_.height, shape_.align_corners).index + 1;
      cell_of_.data()[v] = static_cast<std::int32_t>(row * (shape_.width + 1) + column);
    }
  });
  if (!finite) fail_at_first_bad(space, shape_.vertices);
}

// Counting sort: stable, so that the order of vertices inside a cell is the caller's. For 37,984
// vertices it takes 0.1 ms: less than it would to find and move those that crossed an edge.
template <class T>
void ReadoutLayout<T>::sort() {
  cells_.clear();
  groups_ = 0;
  std::fill(count_.begin(), count_.end(), 0);
  for (std::int64_t v = 0; v < shape_.vertices; ++v) ++count_[cell_of_.data()[v]];
  for (std::size_t index = 0; index < count_.size(); ++index) {
    next_[index] = groups_ * view_.lanes;
    if (count_[index]) add_cell(static_cast<std::int64_t>(index), count_[index]);
  }
  std::fill_n(vertex_.data(), groups_ * view_.lanes, -1);
  for (std::int64_t v = 0; v < shape_.vertices; ++v) {
    vertex_.data()[next_[cell_of_.data()[v]]++] = static_cast<std::int32_t>(v);
  }
}

template <class T>
void ReadoutLayout<T>::add_cell(std::int64_t index, std::int64_t count) {
  ReadoutCell cell{};
  cell.group_begin = groups_;
  groups_ += (count + view_.lanes - 1) / view_.lanes;
  cell.group_end = groups_;
  cell.vertex_count = count;
  for (int corner = 0; corner < 4; ++corner) {
    const std::int64_t x = index % (shape_.width + 1) - 1 + corner % 2;
    const std::int64_t y = index / (shape_.width + 1) - 1 + corner / 2;
    if (x < 0 || x >= shape_.width || y < 0 || y >= shape_.height) continue;
    cell.pixel[cell.slots] = static_cast<int>(y * shape_.width + x);
    cell.corner[cell.slots++] = corner;
  }
  cell.pixel[cell.slots] = static_cast<int>(shape_.pixels());
  cell.corner[cell.slots++] = 4;
  cells_.push_back(cell);
}

// Pieces small enough to share out evenly, and cut where whole columns of groups end.
template <class T>
void ReadoutLayout<T>::cut_units() {
  const std::int64_t step = unit_groups();
  units_.clear();
  for (std::size_t cell = 0; cell < cells_.size(); ++cell) {
    for (std::int64_t begin = cells_[cell].group_begin; begin < cells_[cell].group_end;
         begin += step) {
      units_.push_back(
          {static_cast<std::int64_t>(cell), begin, std::min(begin + step, cells_[cell].group_end)});
    }
  }
}

template <class T>
void ReadoutLayout<T>::pack_group(const ReadoutParameters<T>& parameters, const ReadoutCell& cell,
                                  std::int64_t group) {
  const std::int64_t lanes = view_.lanes, padded = view_.blocks * view_.rows;
  T* const layer = layer_.data() + group * padded * lanes;
  T* const rows = layer_rows_.data() + group * lanes * padded;
  T* const corner = corner_.data() + group * 5 * lanes;
  std::fill_n(layer, padded * lanes, T(0));
  std::fill_n(rows, lanes * padded, T(0));
  std::fill_n(corner, 5 * lanes, T(0));
  for (std::int64_t lane = 0; lane < lanes; ++lane) {
    const std::int64_t v = vertex_.data()[group * lanes + lane];
    const bool real = v >= 0;
    const double scale = real ? static_cast<double>(parameters.scale[v]) : 0;
    const T* const point = parameters.space + 2 * (real ? v : 0);
    const Position x = locate(static_cast<double>(point[0]), shape_.width, shape_.align_corners);
    const Position y = locate(static_cast<double>(point[1]), shape_.height, shape_.align_corners);
    fraction_.data()[group * 2 * lanes + lane] = static_cast<T>(x.fraction);
    fraction_.data()[(group * 2 + 1) * lanes + lane] = static_cast<T>(y.fraction);
    slope_.data()[group * 2 * lanes + lane] = static_cast<T>(x.slope);
    slope_.data()[(group * 2 + 1) * lanes + lane] = static_cast<T>(y.slope);
    scale_.data()[group * lanes + lane] = static_cast<T>(scale);
    bias_.data()[group * lanes + lane] = real && parameters.bias ? parameters.bias[v] : T(0);
    if (!real) continue;
    for (std::int64_t l = 0; l < shape_.layers; ++l) {
      const T value = parameters.layer[v * shape_.layers + l];
      layer[l * lanes + lane] = value;
      rows[lane * padded + l] = value;
    }
    for (int slot = 0; slot < cell.slots; ++slot) {
      const int id = cell.corner[slot];
      const double across = id % 2 ? x.fraction : 1 - x.fraction;
      const double down = id / 2 % 2 ? y.fraction : 1 - y.fraction;
      corner[slot * lanes + lane] = static_cast<T>(id == 4 ? scale : across * down * (1 - scale));
    }
  }
}

template <class T>
void ReadoutLayout<T>::pack_weight(ThreadPool& pool) {
  const std::int64_t stride = view_.channels * view_.lanes;
  weight_.reserve(groups_ * stride);
  pool.run(groups_, [&](std::int64_t group, int) {
    kernels_->pack_weight(view_, group, view_.weight, weight_.data() + group * stride);
  });
  view_.packed_weight = weight_.data();
  view_.weight = nullptr;  // the caller's array need not live on
}

template <class T>
std::int64_t ReadoutLayout<T>::bytes() const {
  std::size_t elements = 0;
  for (const auto* buffer :
       {&layer_, &layer_rows_, &corner_, &bias_, &fraction_, &slope_, &scale_, &weight_}) {
    elements += buffer->capacity();
  }
  return static_cast<std::int64_t>(elements * sizeof(T) +
                                   vertex_.capacity() * sizeof(std::int32_t));
}

template <class T>
std::int64_t ReadoutLayout<T>::corners() const {
  std::int64_t total = 0;
  for (const ReadoutCell& cell : cells_) total += cell.vertex_count * cell.slots;
  return total;
}

template class ReadoutLayout<float>;
template class ReadoutLayout<double>;

}  // namespace brainfast
