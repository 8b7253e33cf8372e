// Two plans, and one plan shared, run from several threads at once on one pool: the same bits as
// one after another. Meant for ThreadSanitizer.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "expect.h"
#include "naive_readout.h"
#include "runtime/thread_pool.h"

using namespace brainfast;

namespace {

constexpr std::int64_t kImages = 2;
constexpr int kRepeats = 6;

struct Work {
  Work(const ReadoutShape& shape, Isa isa, Precision precision)
      : arguments(random_arguments<float>(shape, kImages)),
        plan(shape, arguments.parameters(), isa, precision),
        wanted(run()) {}

  std::vector<float> run() const {
    std::vector<float> output(kImages * plan.shape().vertices);
    plan.run(arguments.tokens(kImages), output.data());
    return output;
  }

  Arguments<float> arguments;
  FactorReadoutPlan plan;
  std::vector<float> wanted;
};

// Two threads on the first work, one on the second; the pool may be replaced meanwhile.
void test_at_once(Precision precision, Isa isa, bool resize) {
  set_num_threads(3);
  const Work first({150, 6, 24, 6, 6, false}, isa, precision);
  const Work second({170, 3, 40, 5, 7, true}, isa, precision);
  std::atomic<int> differences{0};
  std::vector<std::thread> threads;
  for (const Work* work : {&first, &first, &second}) {
    threads.emplace_back([work, &differences] {
      for (int repeat = 0; repeat < kRepeats; ++repeat) differences += work->run() != work->wanted;
    });
  }
  if (resize) {
    for (int count : {1, 2, 4, 3}) set_num_threads(count);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(differences == 0);
}

}  // namespace

int main() {
  for (Precision precision : {Precision::fp32, Precision::bf16, Precision::bf16x3}) {
    std::vector<Isa> isas = supported_isas(precision);
    if (precision != Precision::fp32) isas.push_back(Isa::amx_emulated);
    for (Isa isa : isas) {
      test_at_once(precision, isa, false);
      test_at_once(precision, isa, true);
    }
  }
  std::puts("plans_at_once: passed");
}
