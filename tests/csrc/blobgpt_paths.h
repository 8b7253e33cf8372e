// What the tests of BlobGPT's operators share: numbers, bars, and every path of a precision, tiles
// included where their instructions can be emulated.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "expect.h"
#include "kernels/bfloat16.h"
#include "runtime/cpu_features.h"
#include "trapped_amx.h"

namespace brainfast {

template <class T>
std::vector<T> random_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> numbers(count);
  for (T& number : numbers) number = normal(generator);
  return numbers;
}

inline std::vector<float> rounded(std::vector<float> numbers, Precision precision) {
  round_operands(precision, static_cast<std::int64_t>(numbers.size()), numbers.data(),
                 numbers.data());
  return numbers;
}

template <class T>
bool close(const std::vector<T>& found, const std::vector<double>& wanted, double tolerance) {
  double largest = 1e-3, error = 0;
  for (double value : wanted) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::abs(found[i] - wanted[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return found.size() == wanted.size() && error <= tolerance * largest;
}

// Calls f(precision, isa) for every path.
template <class F>
void each_path(F&& f) {
  for (Precision precision : {Precision::fp32, Precision::bf16, Precision::bf16x3}) {
    std::vector<Isa> isas = supported_isas(precision);
    if (precision != Precision::fp32) isas.push_back(Isa::amx_emulated);
#if defined(BRAINFAST_TRAPS_AMX)
    if (precision != Precision::fp32 && traps_amx()) isas.push_back(Isa::amx);
#endif
    for (Isa isa : isas) f(precision, isa);
#if defined(BRAINFAST_TRAPS_AMX)
    EXPECT(trapped_amx::configured == trapped_amx::released);
#endif
  }
}

}  // namespace brainfast
