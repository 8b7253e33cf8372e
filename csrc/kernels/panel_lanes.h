// Matrices as panels of lanes: rows [N, steps] become [groups, steps, lanes], so that one vector
// holds the same step of `lanes` rows. Lanes past the last row are zeros.
#pragma once

#include "lanes.h"

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

// to[c][r] = from[r][c], in blocks of four by four where they are whole.
template <class T>
BRAINFAST_INLINE void transpose_into(const T* from, int64_t from_stride, int64_t rows,
                                     int64_t columns, T* to, int64_t to_stride) {
  using Loose = typename Quad<T>::Loose;
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t r = 0; r < whole_rows; r += 4) {
    for (int64_t c = 0; c < whole_columns; c += 4) {
      Loose quad[4];
      for (int i = 0; i < 4; ++i) {
        quad[i] = *reinterpret_cast<const Loose*>(from + (r + i) * from_stride + c);
      }
      transpose(quad);
      for (int i = 0; i < 4; ++i) *reinterpret_cast<Loose*>(to + (c + i) * to_stride + r) = quad[i];
    }
    for (int64_t c = whole_columns; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) to[c * to_stride + r + i] = from[(r + i) * from_stride + c];
    }
  }
  for (int64_t r = whole_rows; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

// One group: `rows` rows of `steps` numbers -> [steps, lanes].
template <class M>
void pack_panel(const typename M::Scalar* from, int64_t row_stride, int64_t rows, int64_t steps,
                typename M::Scalar* to) {
  if (rows < M::kLanes) {
    for (int64_t i = 0; i < steps * M::kLanes; ++i) to[i] = typename M::Scalar(0);
  }
  transpose_into(from, row_stride, rows, steps, to, M::kLanes);
}

// The other way round: [steps, lanes] -> `rows` rows of `steps` numbers.
template <class M>
void unpack_panel(const typename M::Scalar* from, int64_t rows, int64_t steps,
                  typename M::Scalar* to, int64_t row_stride) {
  transpose_into(from, M::kLanes, steps, rows, to, row_stride);
}

// The first `count` lanes, to any address.
template <class M>
BRAINFAST_INLINE void store_lanes(typename M::Scalar* to, typename M::Vector value, int64_t count) {
  if (count >= M::kLanes) {
    *reinterpret_cast<typename M::Loose*>(to) = value;
  } else {
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
  }
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
