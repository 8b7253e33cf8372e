// The plan with bfloat16 operands: every path against loops in double over the same operands, and
// no allocation once a plan has run.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "count_allocations.h"
#include "expect.h"
#include "kernels/bfloat16.h"
#include "kernels/factor_readout.h"
#include "naive_readout.h"
#include "runtime/cpu_features.h"
#include "runtime/thread_pool.h"
#include "trapped_amx.h"

using namespace brainfast;

namespace {

struct Case {
  std::int64_t images;
  ReadoutShape shape;  // V L D H W align_corners
};

const std::vector<Case> kCases = {
    {2, {90, 12, 32, 8, 8, false}},  {1, {1, 1, 1, 1, 1, true}},     {3, {37, 40, 17, 5, 3, false}},
    {2, {50, 5, 33, 1, 7, true}},    {9, {70, 13, 16, 3, 3, false}}, {2, {20, 3, 130, 2, 2, true}},
    {0, {5, 2, 3, 2, 2, false}},     {2, {0, 2, 3, 2, 2, false}},    {35, {9, 2, 7, 3, 1, false}},
    {1, {600, 1, 513, 1, 1, false}},
};

std::vector<Isa> paths_of(Precision precision) {
  std::vector<Isa> isas = supported_isas(precision);
  isas.push_back(Isa::amx_emulated);
  return isas;
}

Arguments<float> rounded(Arguments<float> arguments, Precision precision) {
  for (auto* part : {&arguments.local, &arguments.global, &arguments.weight}) {
    round_operands(precision, static_cast<std::int64_t>(part->size()), part->data(), part->data());
  }
  return arguments;
}

bool close(const std::vector<float>& found, const std::vector<double>& wanted, double tolerance) {
  double largest = 1e-3, error = 0;
  for (double value : wanted) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::abs(found[i] - wanted[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return found.size() == wanted.size() && error <= tolerance * largest;
}

void test_plan(const Case& test, Precision precision, Isa isa) {
  const ReadoutShape& shape = test.shape;
  const auto arguments = random_arguments<float>(shape, test.images);
  const auto grad_output = random_numbers<float>(test.images * shape.vertices, 99);
  Arguments<double> wanted(shape, test.images);
  const auto response =
      naive(shape, test.images, rounded(arguments, precision), grad_output, wanted);
  const FactorReadoutPlan plan(shape, arguments.parameters(), isa, precision);
  std::vector<float> first(response.size());
  plan.run(arguments.tokens(test.images), first.data());
  EXPECT(close(first, response, 5e-5));
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    std::vector<float> output(response.size());
    plan.run(arguments.tokens(test.images), output.data());
    EXPECT(output == first);  // the same bits for any number of threads
  }
  Arguments<float> grads(shape, test.images);
  plan.adjoint(test.images, grad_output.data(), grads.local.data(), grads.global.data());
  EXPECT(close(grads.local, wanted.local, 2e-5));
  EXPECT(close(grads.global, wanted.global, 2e-5));
}

void test_later_calls_allocate_nothing(Precision precision, Isa isa) {
  const ReadoutShape shape{300, 12, 64, 8, 8, false};
  const auto arguments = random_arguments<float>(shape, 4);
  const FactorReadoutPlan plan(shape, arguments.parameters(), isa, precision);
  std::vector<float> output(4 * shape.vertices);
  EXPECT(allocations > 0);
  plan.run(arguments.tokens(4), output.data());
  const int before = allocations;
  for (std::int64_t images : {4, 1, 3}) plan.run(arguments.tokens(images), output.data());
  EXPECT(allocations == before);
}

void test_two_plans_at_once(Precision precision, Isa isa) {
  std::vector<std::thread> threads;
  for (std::int64_t vertices : {150, 170}) {
    threads.emplace_back([=] {
      const ReadoutShape shape{vertices, 6, 24, 6, 6, false};
      const auto arguments = random_arguments<float>(shape, 2);
      const FactorReadoutPlan plan(shape, arguments.parameters(), isa, precision);
      std::vector<float> wanted(2 * vertices), output(2 * vertices);
      plan.run(arguments.tokens(2), wanted.data());
      for (int repeat = 0; repeat < 5; ++repeat) {
        plan.run(arguments.tokens(2), output.data());
        EXPECT(output == wanted);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The object with AMX instructions, where the processor runs what surrounds them.
void test_trapped_amx() {
#if defined(BRAINFAST_TRAPS_AMX)
  if (!traps_amx()) return;
  for (Precision precision : {Precision::bf16, Precision::bf16x3}) {
    for (const Case& test : kCases) test_plan(test, precision, Isa::amx);
    test_later_calls_allocate_nothing(precision, Isa::amx);
    test_two_plans_at_once(precision, Isa::amx);
  }
  EXPECT(trapped_amx::dots > 0);
  EXPECT(trapped_amx::configured == trapped_amx::released);
  std::puts("factor_readout_precision: AMX instructions were emulated");
#endif
}

void test_rounding() {
  struct Pair {
    std::uint32_t from;
    std::uint32_t to;
  };
  for (const Pair& pair :
       {Pair{0x3f808000, 0x3f800000},  // a tie, to even: down
        Pair{0x3f818000, 0x3f820000},  // a tie, to even: up
        Pair{0x3f808001, 0x3f810000}, Pair{0x3f807fff, 0x3f800000}, Pair{0xbf818000, 0xbf820000},
        Pair{0x80000000, 0x80000000}, Pair{0x7f800000, 0x7f800000}, Pair{0x7f7fffff, 0x7f800000},
        Pair{0x7fffffff, 0x7fff0000}, Pair{0x7f800001, 0x7fc00000}}) {
    const float from = std::bit_cast<float>(pair.from);
    float to = 0;
    round_operands(Precision::bf16, 1, &from, &to);
    EXPECT(std::bit_cast<std::uint32_t>(to) == pair.to);
    EXPECT(split_bfloat16(from).high == pair.to >> 16);
    EXPECT(std::bit_cast<std::uint32_t>(widen_bfloat16(split_bfloat16(from).high)) == pair.to);
  }
  for (float from : random_numbers<float>(1000, 5)) {
    float both = 0;
    round_operands(Precision::bf16x3, 1, &from, &both);
    const BFloatHalves halves = split_bfloat16(from);
    EXPECT(both == widen_bfloat16(halves.high) + widen_bfloat16(halves.low));
    EXPECT(std::abs(both - from) <= std::ldexp(std::abs(from), -17));
    round_operands(Precision::fp32, 1, &from, &both);
    EXPECT(both == from);
  }
}

}  // namespace

int main() {
  test_rounding();
  for (Precision precision : {Precision::bf16, Precision::bf16x3}) {
    for (Isa isa : paths_of(precision)) {
      for (const Case& test : kCases) test_plan(test, precision, isa);
      test_later_calls_allocate_nothing(precision, isa);
      test_two_plans_at_once(precision, isa);
    }
  }
  test_trapped_amx();
  std::puts("factor_readout_precision: passed");
}
