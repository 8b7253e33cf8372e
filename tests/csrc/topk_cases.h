// Pools whose scores are whole numbers, exact on every path, and what must be chosen of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/score_topk.h"

namespace brainfast {

struct TopkCase {
  std::int64_t candidates, features, objectives, k;
};

struct Chosen {
  std::vector<float> scores;
  std::vector<std::int64_t> indices;

  explicit Chosen(const TopkCase& size)
      : scores(size.objectives * size.k, 7), indices(size.objectives * size.k, 7) {}
  bool operator==(const Chosen&) const = default;
};

inline float upper_half(float number) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(number) & 0xffff0000u);
}

inline std::vector<std::uint16_t> upper_halves(const std::vector<float>& numbers) {
  std::vector<std::uint16_t> found;
  for (float number : numbers) {
    found.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(number) >> 16));
  }
  return found;
}

// Numbers of which bfloat16 and int8 lose nothing, as every kind of features.
class Numbers {
 public:
  explicit Numbers(std::vector<float> numbers)
      : floats(std::move(numbers)),
        bfloats(upper_halves(floats)),
        bytes(floats.begin(), floats.end()) {}

  const void* as(FeatureKind kind) const {
    if (kind == FeatureKind::float32) return floats.data();
    if (kind == FeatureKind::bfloat16) return bfloats.data();
    return bytes.data();
  }

  std::vector<float> floats;
  std::vector<std::uint16_t> bfloats;
  std::vector<std::int8_t> bytes;
};

inline Numbers whole_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> digits(-2, 2);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = static_cast<float>(digits(generator));
  return Numbers(numbers);
}

struct TopkArguments {
  explicit TopkArguments(const TopkCase& size)
      : size(size),
        pool(whole_numbers(size.candidates * size.features, 1)),
        templates(whole_numbers(size.objectives * size.features, 2)) {
    std::mt19937 generator(3);
    for (std::int64_t n = 0; n < size.candidates; ++n) {
      scale.push_back(generator() % 2 ? 1.0f : 0.5f);
      exclude.push_back(generator() % 3 == 0);
    }
  }

  CandidatePool candidates(FeatureKind kind, bool excludes) const {
    return {size.candidates,
            size.features,
            pool.as(kind),
            kind,
            kind == FeatureKind::int8 ? scale.data() : nullptr,
            excludes ? exclude.data() : nullptr};
  }

  // By a stable sort of all scores.
  Chosen expected(FeatureKind kind, bool excludes) const {
    Chosen found(size);
    for (std::int64_t o = 0; o < size.objectives; ++o) {
      std::vector<float> scores;
      std::vector<std::int64_t> order;
      for (std::int64_t n = 0; n < size.candidates; ++n) {
        double sum = 0;
        for (std::int64_t f = 0; f < size.features; ++f) {
          sum +=
              double(pool.floats[n * size.features + f]) * templates.floats[o * size.features + f];
        }
        scores.push_back(static_cast<float>(sum) * (kind == FeatureKind::int8 ? scale[n] : 1));
        if (!(excludes && exclude[n]) && std::isfinite(scores[n])) order.push_back(n);
      }
      std::stable_sort(order.begin(), order.end(),
                       [&](auto a, auto b) { return scores[a] > scores[b]; });
      for (std::int64_t i = 0; i < size.k; ++i) {
        const bool there = i < static_cast<std::int64_t>(order.size());
        found.indices[o * size.k + i] = there ? order[i] : -1;
        found.scores[o * size.k + i] =
            there ? scores[order[i]] : -std::numeric_limits<float>::infinity();
      }
    }
    return found;
  }

  TopkCase size;
  Numbers pool, templates;
  std::vector<float> scale;
  std::vector<std::uint8_t> exclude;
};

}  // namespace brainfast
