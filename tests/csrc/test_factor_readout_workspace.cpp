// Training steps on a workspace: every path and precision against loops in double, points that move
// from step to step, and no allocation once a size has been seen.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "count_allocations.h"
#include "expect.h"
#include "kernels/factor_readout_workspace.h"
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
    {2, {90, 12, 32, 8, 8, false}},  {1, {1, 1, 1, 1, 1, true}},
    {3, {37, 40, 17, 5, 3, false}},  {2, {50, 5, 33, 1, 7, true}},
    {9, {70, 13, 16, 3, 3, true}},   {0, {5, 2, 3, 2, 2, false}},
    {2, {0, 2, 3, 2, 2, false}},     {35, {9, 2, 7, 3, 1, false}},
    {5, {600, 1, 130, 1, 1, false}}, {2, {600, 3, 5, 2, 2, false}},
    {19, {40, 40, 40, 2, 2, false}},
};

struct Path {
  Precision precision;
  Isa isa;
};

std::vector<Path> all_paths() {
  std::vector<Path> paths;
  for (Precision precision : {Precision::fp32, Precision::bf16}) {
    for (Isa isa : supported_isas(precision)) paths.push_back({precision, isa});
  }
  paths.push_back({Precision::bf16, Isa::amx_emulated});
  return paths;
}

// Root mean square of the error over that of the answer: bfloat16 operands leave 2^-9 of each term.
bool close(const std::vector<float>& found, const std::vector<double>& wanted,
           Precision precision) {
  double error = 0, size = 1e-12;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    error += (found[i] - wanted[i]) * (found[i] - wanted[i]);
    size += wanted[i] * wanted[i];
  }
  const double bar = precision == Precision::fp32 ? 2e-6 : 8e-3;
  return found.size() == wanted.size() && std::sqrt(error) <= bar * std::sqrt(size);
}

struct Step {
  std::vector<float> response;
  Arguments<float> grads;

  Step(const ReadoutShape& shape, std::int64_t images)
      : response(images * shape.vertices, NAN), grads(shape, images) {
    grads.each([](std::vector<float>& part) { std::fill(part.begin(), part.end(), NAN); });
  }

  bool operator==(const Step& other) const {
    return response == other.response && grads.local == other.grads.local &&
           grads.global == other.grads.global && grads.space == other.grads.space &&
           grads.layer == other.grads.layer && grads.scale == other.grads.scale &&
           grads.weight == other.grads.weight && grads.bias == other.grads.bias;
  }
};

Step run(FactorReadoutWorkspace& workspace, std::int64_t images, const Arguments<float>& arguments,
         const std::vector<float>& grad_output) {
  Step step(workspace.shape(), images);
  workspace.forward(arguments.parameters(), arguments.tokens(images), step.response.data());
  workspace.backward(images, grad_output.data(), step.grads.gradients());
  return step;
}

void test_step(const Case& test, Path path, int turns) {
  const ReadoutShape& shape = test.shape;
  auto arguments = random_arguments<float>(shape, test.images);
  const auto grad_output = random_numbers<float>(test.images * shape.vertices, 99);
  FactorReadoutWorkspace workspace(shape, path.isa, path.precision);
  for (int turn = 0; turn < turns; ++turn) {
    Arguments<double> wanted(shape, test.images);
    const auto response = naive(shape, test.images, arguments, grad_output, wanted);
    set_num_threads(1);
    const Step step = run(workspace, test.images, arguments, grad_output);
    EXPECT(close(step.response, response, path.precision));
    EXPECT(close(step.grads.local, wanted.local, path.precision));
    EXPECT(close(step.grads.global, wanted.global, path.precision));
    EXPECT(close(step.grads.space, wanted.space, path.precision));
    EXPECT(close(step.grads.layer, wanted.layer, path.precision));
    EXPECT(close(step.grads.scale, wanted.scale, path.precision));
    EXPECT(close(step.grads.weight, wanted.weight, path.precision));
    EXPECT(close(step.grads.bias, wanted.bias, Precision::fp32));
    // The same bits for any number of threads, and without the steps before.
    set_num_threads(2 + turn % 2);
    FactorReadoutWorkspace other(shape, path.isa, path.precision);
    EXPECT(run(other, test.images, arguments, grad_output) == step);
    EXPECT(run(workspace, test.images, arguments, grad_output) == step);
    for (float& point : arguments.space)
      point = 0.9f * point + 0.1f;  // some cross into other cells
  }
}

void test_later_steps_allocate_nothing(Path path) {
  const ReadoutShape shape{300, 12, 64, 8, 8, false};
  auto arguments = random_arguments<float>(shape, 4);
  const auto grad_output = random_numbers<float>(4 * shape.vertices, 99);
  FactorReadoutWorkspace workspace(shape, path.isa, path.precision);
  Step step = run(workspace, 4, arguments, grad_output);
  const int before = allocations;
  EXPECT(before > 0);
  for (std::int64_t images : {4, 1, 3, 4}) {
    for (float& point : arguments.space) point = 0.7f * point + 0.1f;
    workspace.forward(arguments.parameters(), arguments.tokens(images), step.response.data());
    workspace.backward(images, grad_output.data(), step.grads.gradients());
  }
  EXPECT(allocations == before);
}

void test_wanted(Path path) {
  const ReadoutShape shape{70, 5, 33, 3, 4, false};
  const auto arguments = random_arguments<float>(shape, 3);
  const auto grad_output = random_numbers<float>(3 * shape.vertices, 99);
  FactorReadoutWorkspace workspace(shape, path.isa, path.precision);
  const Step all = run(workspace, 3, arguments, grad_output);
  float* ReadoutGradients<float>::* const names[] = {
      &ReadoutGradients<float>::local, &ReadoutGradients<float>::global,
      &ReadoutGradients<float>::space, &ReadoutGradients<float>::layer,
      &ReadoutGradients<float>::scale, &ReadoutGradients<float>::weight,
      &ReadoutGradients<float>::bias};
  Step one(shape, 3);
  one.response = all.response;
  for (auto name : names) {
    ReadoutGradients<float> wanted;
    wanted.*name = one.grads.gradients().*name;
    workspace.backward(3, grad_output.data(), wanted);
  }
  EXPECT(one == all);
}

template <class F>
bool refuses(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void test_refusals(Path path) {
  const ReadoutShape shape{20, 2, 3, 2, 2, false};
  auto arguments = random_arguments<float>(shape, 2);
  const auto grad_output = random_numbers<float>(2 * shape.vertices, 99);
  Step step(shape, 2);
  FactorReadoutWorkspace workspace(shape, path.isa, path.precision);
  const auto forward = [&] {
    workspace.forward(arguments.parameters(), arguments.tokens(2), step.response.data());
  };
  const auto backward = [&](std::int64_t images) {
    workspace.backward(images, grad_output.data(), step.grads.gradients());
  };
  EXPECT(refuses([&] { backward(2); }));  // no forward yet
  forward();
  EXPECT(refuses([&] { backward(1); }));
  backward(2);
  const Step wanted = step;
  arguments.space[7] = NAN;
  EXPECT(refuses(forward));
  EXPECT(refuses([&] { backward(2); }));
  arguments = random_arguments<float>(shape, 2);
  forward();
  backward(2);
  EXPECT(step == wanted);
}

void test_path(Path path, int turns) {
  for (const Case& test : kCases) test_step(test, path, turns);
  test_later_steps_allocate_nothing(path);
  test_wanted(path);
  test_refusals(path);
}

// The object with AMX instructions, where the processor runs what surrounds them.
void test_trapped_amx() {
#if defined(BRAINFAST_TRAPS_AMX)
  if (!traps_amx()) return;
  test_path({Precision::bf16, Isa::amx}, 2);  // each instruction costs a signal
  EXPECT(trapped_amx::dots > 0);
  EXPECT(trapped_amx::configured == trapped_amx::released);
  std::puts("factor_readout_workspace: AMX instructions were emulated");
#endif
}

}  // namespace

int main() {
  EXPECT(refuses(
      [] { FactorReadoutWorkspace({1, 1, 1, 1, 1, false}, Isa::portable, Precision::bf16x3); }));
  for (Path path : all_paths()) test_path(path, 3);
  test_trapped_amx();
  std::puts("factor_readout_workspace: passed");
}
