// Reading templates, and the sizes of features.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bfloat16.h"
#include "score_topk.h"

namespace brainfast {

inline std::int64_t bytes_of(FeatureKind kind) {
  switch (kind) {
    case FeatureKind::float32:
      return 4;
    case FeatureKind::bfloat16:
      return 2;
    default:
      return 1;
  }
}

// `count` numbers from number `at` on.
inline void read_template(const TemplateRows& templates, std::int64_t at, std::int64_t count,
                          float* to) {
  if (templates.kind == FeatureKind::float32) {
    std::copy_n(static_cast<const float*>(templates.data) + at, count, to);
  } else {
    const auto* const from = static_cast<const std::uint16_t*>(templates.data) + at;
    std::transform(from, from + count, to, widen_bfloat16);
  }
}

}  // namespace brainfast
