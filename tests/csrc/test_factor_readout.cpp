#include "kernels/factor_readout.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include "expect.h"
#include "naive_readout.h"
#include "runtime/cpu_features.h"
#include "runtime/thread_pool.h"

using namespace brainfast;

namespace {

struct Case {
  std::int64_t images;
  ReadoutShape shape;  // V L D H W align_corners
};

const std::vector<Case> kCases = {
    {2, {90, 12, 32, 8, 8, false}}, {1, {1, 1, 1, 1, 1, true}},     {3, {37, 40, 17, 5, 3, false}},
    {2, {50, 5, 33, 1, 7, true}},   {9, {70, 13, 16, 3, 3, false}}, {2, {20, 3, 130, 2, 2, true}},
    {0, {5, 2, 3, 2, 2, false}},    {2, {0, 2, 3, 2, 2, false}},    {35, {9, 2, 7, 3, 1, false}},
};

template <class T, class U>
bool close(const std::vector<T>& found, const std::vector<U>& wanted) {
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-11;
  double largest = 0, error = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(wanted[i])));
    const double difference = std::abs(static_cast<double>(found[i]) - wanted[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return found.size() == wanted.size() && error <= tolerance * (largest + 1e-3);
}

template <class T>
void test_against_loops(const Case& test, Isa isa) {
  const ReadoutShape& shape = test.shape;
  const auto arguments = random_arguments<T>(shape, test.images);
  const auto grad_output = random_numbers<T>(test.images * shape.vertices, 99);
  Arguments<double> wanted(shape, test.images);
  const auto response = naive(shape, test.images, arguments, grad_output, wanted);
  std::vector<T> first;
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    std::vector<T> output(response.size());
    factor_readout_forward<T>(shape, arguments.parameters(), arguments.tokens(test.images),
                              output.data(), isa);
    EXPECT(close(output, response));
    Arguments<T> grads(shape, test.images);
    factor_readout_backward<T>(shape, arguments.parameters(), arguments.tokens(test.images),
                               grad_output.data(), grads.gradients(), isa);
    EXPECT(close(grads.local, wanted.local));
    EXPECT(close(grads.global, wanted.global));
    EXPECT(close(grads.space, wanted.space));
    EXPECT(close(grads.layer, wanted.layer));
    EXPECT(close(grads.scale, wanted.scale));
    EXPECT(close(grads.weight, wanted.weight));
    EXPECT(close(grads.bias, wanted.bias));
    std::vector<T> all = output;
    grads.each([&](std::vector<T>& part) { all.insert(all.end(), part.begin(), part.end()); });
    if (first.empty()) first = all;
    EXPECT(all == first);  // the same bits for any number of threads
  }
}

void test_plan(const Case& test, Isa isa) {
  const ReadoutShape& shape = test.shape;
  const auto arguments = random_arguments<float>(shape, test.images);
  const auto grad_output = random_numbers<float>(test.images * shape.vertices, 99);
  Arguments<double> wanted(shape, test.images);
  const auto response = naive(shape, test.images, arguments, grad_output, wanted);
  const FactorReadoutPlan plan(shape, arguments.parameters(), isa);
  std::vector<float> output(response.size());
  for (int repeat = 0; repeat < 2; ++repeat) {
    plan.run(arguments.tokens(test.images), output.data());
    EXPECT(close(output, response));
  }
  Arguments<float> grads(shape, test.images);
  plan.adjoint(test.images, grad_output.data(), grads.local.data(), grads.global.data());
  EXPECT(close(grads.local, wanted.local));
  EXPECT(close(grads.global, wanted.global));
}

void test_plan_of_many_images(Isa isa) {
  const Case test{40, {40, 12, 128, 3, 3, false}};
  test_plan(test, isa);
}

void test_shared_plan() {
  const ReadoutShape shape{200, 6, 24, 6, 6, false};
  const auto arguments = random_arguments<float>(shape, 4);
  const FactorReadoutPlan plan(shape, arguments.parameters(), select_isa());
  std::vector<float> wanted(4 * shape.vertices);
  plan.run(arguments.tokens(4), wanted.data());
  std::vector<std::thread> threads;
  for (std::int64_t images = 1; images <= 4; ++images) {
    threads.emplace_back([&, images] {
      std::vector<float> output(images * shape.vertices);
      for (int repeat = 0; repeat < 20; ++repeat) {
        plan.run(arguments.tokens(images), output.data());
        EXPECT(std::equal(output.begin(), output.end(), wanted.begin()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void test_fork() {
  const ReadoutShape shape{200, 6, 24, 6, 6, false};
  const auto arguments = random_arguments<float>(shape, 2);
  const FactorReadoutPlan plan(shape, arguments.parameters(), select_isa());
  std::vector<float> wanted(2 * shape.vertices), output(2 * shape.vertices);
  plan.run(arguments.tokens(2), wanted.data());
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    plan.run(arguments.tokens(2), output.data());
    _exit(output == wanted ? 0 : 1);
  }
  int status = 1;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(status == 0);
}

void test_refusals() {
  const ReadoutShape shape{3, 2, 4, 2, 2, false};
  auto arguments = random_arguments<float>(shape, 1);
  for (float wrong : {NAN, INFINITY, -INFINITY}) {
    arguments.space[3] = wrong;
    bool refused = false;
    try {
      FactorReadoutPlan(shape, arguments.parameters(), Isa::portable);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    EXPECT(refused);
  }
}

}  // namespace

int main() {
  for (const Case& test : kCases) {
    for (Isa isa : supported_isas()) {
      test_against_loops<float>(test, isa);
      test_plan(test, isa);
    }
    test_against_loops<double>(test, Isa::portable);
  }
  for (Isa isa : supported_isas()) test_plan_of_many_images(isa);
  test_shared_plan();
  test_fork();
  test_refusals();
  for (Isa isa : supported_isas()) EXPECT(fma_ceiling(isa, 0.001) > 0);
  std::puts("factor_readout: passed");
}
