#include "align_tokens_taps.h"

#include <algorithm>
#include <cstddef>

namespace brainfast {
namespace {

constexpr std::int64_t kLine = 16;  // elements of a cache line

std::int64_t round_up(std::int64_t count, std::int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

// Hands out pieces of one memory, each at the start of a cache line.
class Carver {
 public:
  explicit Carver(std::byte* memory) : at_(memory) {}

  template <class T>
  T* take(std::int64_t count) {
    static_assert(sizeof(T) == 4);
    T* const piece = reinterpret_cast<T*>(at_);
    at_ += round_up(count, kLine) * sizeof(T);
    return piece;
  }

 private:
  std::byte* at_;
};

struct Tap {
  std::int32_t low, high;
  float weight;  // of high
};

Tap tap_of(std::int64_t place, std::int64_t target, std::int64_t source) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double centre = std::max((static_cast<double>(place) + 0.5) * scale - 0.5, 0.0);
  const auto last = static_cast<std::int32_t>(source - 1);
  const std::int32_t low = std::min(static_cast<std::int32_t>(centre), last);
  return {low, std::min(low + 1, last), static_cast<float>(centre - low)};
}

// The mean over the target grid as one weight for each source pixel.
const float* mean_weights(const AlignShape& shape, const AlignSource& source, Carver& carver) {
  float* const mean = carver.take<float>(source.height * source.width);
  std::fill_n(mean, source.height * source.width, 0.0f);
  const float share = 1.0f / static_cast<float>(shape.height * shape.width);
  for (std::int64_t y = 0; y < shape.height; ++y) {
    const Tap row = tap_of(y, shape.height, source.height);
    float* const low = mean + row.low * source.width;
    float* const high = mean + row.high * source.width;
    for (std::int64_t x = 0; x < shape.width; ++x) {
      const Tap column = tap_of(x, shape.width, source.width);
      low[column.low] += share * (1 - row.weight) * (1 - column.weight);
      low[column.high] += share * (1 - row.weight) * column.weight;
      high[column.low] += share * row.weight * (1 - column.weight);
      high[column.high] += share * row.weight * column.weight;
    }
  }
  return mean;
}

// Columns as places in the rows that a task has resampled, counted from a window for each vector.
// False where a vector reads from further apart than two vectors.
bool place_windows(std::int64_t lanes, std::int64_t row_stride, std::int64_t target_width,
                   std::int64_t pixels, std::int32_t* low, std::int32_t* high,
                   std::int32_t* window) {
  for (std::int64_t begin = 0; begin < pixels; begin += lanes) {
    const std::int64_t first_row = begin / kAlignPixels * kAlignPixels / target_width;
    const std::int64_t end = std::min(begin + lanes, pixels);
    const auto row_of = [&](std::int64_t pixel) {
      return static_cast<std::int32_t>((pixel / target_width - first_row) * row_stride);
    };
    std::int32_t nearest = low[begin] + row_of(begin), furthest = 0;
    for (std::int64_t pixel = begin; pixel < end; ++pixel) {
      nearest = std::min(nearest, low[pixel] + row_of(pixel));
      furthest = std::max(furthest, high[pixel] + row_of(pixel));
    }
    if (furthest - nearest >= 2 * lanes) return false;
    for (std::int64_t pixel = begin; pixel < end; ++pixel) {
      low[pixel] += row_of(pixel) - nearest;
      high[pixel] += row_of(pixel) - nearest;
    }
    window[begin / lanes] = nearest;
  }
  return true;
}

}  // namespace

std::int64_t taps_size(const AlignShape& shape, const AlignSource& source) {
  if (shape.pool_space) return round_up(source.height * source.width, kLine);
  return 3 * round_up(shape.height, kLine) + 4 * round_up(shape.pixels(), kAlignPixels);
}

AlignTaps make_taps(const AlignShape& shape, const AlignSource& source, std::int64_t lanes,
                    std::byte* memory) {
  Carver carver(memory);
  AlignTaps taps{};
  taps.height = source.height;
  taps.width = source.width;
  if (shape.pool_space) {
    taps.mean = mean_weights(shape, source, carver);
    return taps;
  }
  taps.mode = AlignTaps::copy;
  taps.reads_all = true;
  if (source.height == shape.height && source.width == shape.width) return taps;
  auto* const low_row = carver.take<std::int32_t>(shape.height);
  auto* const high_row = carver.take<std::int32_t>(shape.height);
  auto* const row_weight = carver.take<float>(shape.height);
  for (std::int64_t y = 0; y < shape.height; ++y) {
    const Tap tap = tap_of(y, shape.height, source.height);
    low_row[y] = tap.low * static_cast<std::int32_t>(source.width);
    high_row[y] = tap.high * static_cast<std::int32_t>(source.width);
    row_weight[y] = tap.weight;
  }
  const std::int64_t padded = round_up(shape.pixels(), kAlignPixels);
  auto* const low_column = carver.take<std::int32_t>(padded);
  auto* const high_column = carver.take<std::int32_t>(padded);
  auto* const column_weight = carver.take<float>(padded);
  auto* const window = carver.take<std::int32_t>(padded / lanes);
  const auto fill_columns = [&] {
    for (std::int64_t pixel = 0; pixel < padded; ++pixel) {
      const bool real = pixel < shape.pixels();
      const Tap tap = real ? tap_of(pixel % shape.width, shape.width, source.width) : Tap{0, 0, 0};
      low_column[pixel] = tap.low;
      high_column[pixel] = tap.high;
      column_weight[pixel] = tap.weight;
    }
  };
  fill_columns();
  // Down-sampling by more than two leaves rows or columns out.
  taps.reads_all = source.height <= 2 * shape.height && source.width <= 2 * shape.width;
  taps.row_stride = round_up(source.width, lanes);
  taps.mode = AlignTaps::windows;
  if (source.width > kAlignRowWidth ||
      !place_windows(lanes, taps.row_stride, shape.width, shape.pixels(), low_column, high_column,
                     window)) {
    taps.mode = AlignTaps::single;
    taps.reads_all = false;
    fill_columns();
  }
  taps.low_row = low_row;
  taps.high_row = high_row;
  taps.row_weight = row_weight;
  taps.low_column = low_column;
  taps.high_column = high_column;
  taps.column_weight = column_weight;
  taps.window = window;
  return taps;
}

}  // namespace brainfast
