// What kernels written once over vectors of `lanes` numbers share: the register tile of a matrix
// product, and little more. Each instruction-set object compiles its own copy, in its own namespace
// (BRAINFAST_ISA_NAMESPACE), with its own flags.
#pragma once

#include <cstdint>

#ifndef BRAINFAST_ISA_NAMESPACE
#error "name the namespace of this instruction set first"
#endif

#define BRAINFAST_INLINE inline __attribute__((always_inline))
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BRAINFAST_UNROLL  // with a check at every access, unrolled code takes minutes to compile
#elif defined(__clang__)
#define BRAINFAST_UNROLL _Pragma("unroll")
#else
#define BRAINFAST_UNROLL _Pragma("GCC unroll 64")
#endif

namespace brainfast::BRAINFAST_ISA_NAMESPACE {

using std::int64_t;

template <class T, int lanes, int registers, int max_rows>
struct Machine {
  using Scalar = T;
  using Operand = T;  // what products are made of
  static constexpr int kLanes = lanes;
  static constexpr int kMaxRows = max_rows;
  typedef T Vector __attribute__((vector_size(lanes * sizeof(T)), may_alias));
  typedef T Loose __attribute__((vector_size(lanes * sizeof(T)), aligned(sizeof(T)), may_alias));

  // Few rows leave registers for four columns, which hides the latency of the multiply-adds.
  static constexpr int columns(int rows) { return 5 * rows + 4 <= registers ? 4 : 2; }

  static BRAINFAST_INLINE Vector load_operands(const T* from) {
    return *reinterpret_cast<const Vector*>(from);
  }
  static BRAINFAST_INLINE void add_product(Vector& sum, Vector lanes_operand, T operand) {
    sum += lanes_operand * operand;
  }
};

template <class M>
BRAINFAST_INLINE typename M::Vector load(const typename M::Scalar* from) {
  return *reinterpret_cast<const typename M::Vector*>(from);
}

template <class M>
BRAINFAST_INLINE void store(typename M::Scalar* to, typename M::Vector value) {
  *reinterpret_cast<typename M::Vector*>(to) = value;
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls f(Count<n>) for a run-time n in 1..N.
template <int N, class F>
BRAINFAST_INLINE void with_count(int64_t n, F&& f) {
  if (n == N) {
    f(Count<N>{});
  } else if constexpr (N > 1) {
    with_count<N - 1>(n, f);
  }
}

BRAINFAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How the two factors of a product lie in memory, in elements.
struct Strides {
  int64_t x_step, x_row;     // x [steps, rows], read one number at a time
  int64_t w_step, w_column;  // w [steps, columns, lanes]
};

// sum[r][c] += sum over steps of x[step][r] * w[step][c]: all of the arithmetic happens here.
template <class M, int Rows, int Columns>
BRAINFAST_INLINE void multiply(typename M::Vector (&sum)[Rows][Columns],
                               const typename M::Operand* x, const typename M::Operand* w,
                               const Strides& strides, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step) {
    decltype(M::load_operands(w)) column[Columns];
    BRAINFAST_UNROLL
    for (int c = 0; c < Columns; ++c) column[c] = M::load_operands(w + c * strides.w_column);
    BRAINFAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const typename M::Operand value = x[r * strides.x_row];
      BRAINFAST_UNROLL
      for (int c = 0; c < Columns; ++c) M::add_product(sum[r][c], column[c], value);
    }
    x += strides.x_step;
    w += strides.w_step;
  }
}

// Four numbers, at any address.
template <class T>
struct Quad {
  typedef T Loose __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
};

#if defined(__clang__)
#define BRAINFAST_SHUFFLE(Mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define BRAINFAST_SHUFFLE(Mask, a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// Turns four rows of four numbers into four columns, in place.
template <class Q>
BRAINFAST_INLINE void transpose(Q (&row)[4]) {
  using Mask [[maybe_unused]] = decltype(row[0] == row[0]);
  const Q low = BRAINFAST_SHUFFLE(Mask, row[0], row[1], 0, 4, 1, 5);
  const Q high = BRAINFAST_SHUFFLE(Mask, row[0], row[1], 2, 6, 3, 7);
  const Q low2 = BRAINFAST_SHUFFLE(Mask, row[2], row[3], 0, 4, 1, 5);
  const Q high2 = BRAINFAST_SHUFFLE(Mask, row[2], row[3], 2, 6, 3, 7);
  row[0] = BRAINFAST_SHUFFLE(Mask, low, low2, 0, 1, 4, 5);
  row[1] = BRAINFAST_SHUFFLE(Mask, low, low2, 2, 3, 6, 7);
  row[2] = BRAINFAST_SHUFFLE(Mask, high, high2, 0, 1, 4, 5);
  row[3] = BRAINFAST_SHUFFLE(Mask, high, high2, 2, 3, 6, 7);
}

}  // namespace brainfast::BRAINFAST_ISA_NAMESPACE
