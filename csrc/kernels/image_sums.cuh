// Sums of products over the images of a batch, for the gradients of what weighs them.
#pragma once

#include "row_products.cuh"

namespace brainfast::cuda {

// Dots of a chunk, whose columns are terms with kTrainingImages images side by side, times
// factor(row, image), over the images: keep(term, row, sum) is called once for each term of the
// chunk and row of the tile, and may be for padding too. `weight` is the tile in shared memory,
// which tensor cores have in registers; `count` rows of it are not padding.
template <Precision kPrecision, class Factor, class Keep>
__device__ void sum_images(const TensorTile<kPrecision>& products, const unsigned char*,
                           const unsigned char* rows, int columns, int steps, int count,
                           Factor&& factor, Keep&& keep) {
  constexpr int kRows = TensorTile<kPrecision>::kRows;
  float grad[kRows][2];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      grad[r][side] = factor(products.vertex(r), products.column() + side);
    }
  }
  const int own = products.column() / 2;  // the row that this lane keeps
  products.multiply(rows, columns, steps, count, [&](int column, const float (&dots)[kRows][2]) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float part = add_lanes(dots[r][0] * grad[r][0] + dots[r][1] * grad[r][1], 1, 4);
      sum = r == own ? part : sum;
    }
    keep(column / kTrainingImages, products.vertex(own), sum);
  });
}

template <class Factor, class Keep>
__device__ void sum_images(const ScalarTile& products, const unsigned char* weight,
                           const unsigned char* rows, int, int steps, int, Factor&& factor,
                           Keep&& keep) {
  float grad[ScalarTile::kRows];
#pragma unroll
  for (int r = 0; r < ScalarTile::kRows; ++r) {
    grad[r] = factor(products.vertex(r), products.column());
  }
  products.multiply(weight, rows, steps,
                    [&](const float (&dots)[ScalarTile::kRows][ScalarTile::kColumns]) {
#pragma unroll
                      for (int j = 0; j < ScalarTile::kColumns; ++j) {
#pragma unroll
                        for (int r = 0; r < ScalarTile::kRows; ++r) {
                          const float sum = add_lanes(dots[r][j] * grad[r], 1, 8);
                          if (products.column() == j) keep(j, products.vertex(r), sum);
                        }
                      }
                    });
}

}  // namespace brainfast::cuda
