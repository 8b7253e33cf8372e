// The passes over all tokens or vertices that the readout's entry points are made of.
#pragma once

#include <cstdint>

#include "../runtime/cpu_features.h"
#include "../runtime/scratch.h"
#include "../runtime/thread_pool.h"
#include "factor_readout.h"
#include "factor_readout_kernels.h"
#include "factor_readout_layout.h"

namespace brainfast {

// T is float or double; double always takes the portable kernels.
template <class T>
const ReadoutKernels<T>& readout_kernels_of(Isa isa);

// What the numbered buffers of a scratch hold.
enum ReadoutBuffer { kReadoutTokens, kReadoutWork, kReadoutWeight };

inline constexpr std::int64_t kReadoutLine = 16;  // elements between the scratch of two threads

template <class T>
void pack_readout_tokens(const ReadoutLayout<T>& layout, const ReadoutTokens<T>& tokens, T* packed,
                         ThreadPool& pool);

// Operands that `precision` multiplies, in the place of `count` numbers; `to` may be `from`.
void round_readout_operands(Precision precision, std::int64_t count, const float* from, float* to,
                            ThreadPool& pool);

// Response [B,V] from packed tokens.
template <class T>
void run_readout(const ReadoutLayout<T>& layout, std::int64_t images, const T* packed, T* output,
                 Scratch& scratch, ThreadPool& pool);

template <class T>
void run_vertex_gradients(const ReadoutLayout<T>& layout, std::int64_t images, const T* packed,
                          const T* grad_output, const ReadoutGradients<T>& gradients,
                          Scratch& scratch, ThreadPool& pool);

// Weights over D in sorted rows, in the scratch.
template <class T>
const T* sorted_weight(const ReadoutLayout<T>& layout, Scratch& scratch, ThreadPool& pool);

// Token gradients of every image, from sorted weights.
template <class T>
void run_token_gradients(const ReadoutLayout<T>& layout, std::int64_t images, const T* sorted,
                         const T* grad_output, T* local, T* global, Scratch& scratch,
                         ThreadPool& pool);

// Channels that a task of token gradients takes: slices as wide as the number of threads allows.
// They change no sum.
std::int64_t token_slice(std::int64_t images, std::int64_t channels, std::int64_t lanes,
                         const ThreadPool& pool);

template <class T>
void sum_images(const T* grad_output, std::int64_t images, std::int64_t vertices, T* grad_bias,
                ThreadPool& pool);

}  // namespace brainfast
