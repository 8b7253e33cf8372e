// The CUDA kernels of score_topk, compiled for the host and run by the thread-block emulator. What
// this cannot show is said in test_factor_readout_cuda_emulated.cpp.
#include <cstdio>
#include <functional>
#include <stdexcept>

#include "blobgpt_paths.h"
#include "kernels/score_topk.cu"
#include "topk_cases.h"

using namespace brainfast;

namespace {

// Sizes around tiles of 64 candidates, groups of 32 objectives and stages of 32 features.
const std::vector<TopkCase> kCases = {{1, 1, 1, 1},     {50, 33, 7, 3},  {130, 64, 33, 10},
                                      {66, 300, 2, 66}, {65, 16, 32, 1}, {200, 8, 65, 5}};

Chosen choose(const TopkArguments& from, const CandidatePool& pool) {
  const TopkCase& size = from.size;
  std::vector<std::uint64_t> scratch(cuda::topk_bytes(size.candidates, size.objectives, size.k) / 8,
                                     ~std::uint64_t{0});
  Chosen found(size);
  const long before = emulator::launches;
  cuda::score_topk(pool, size.objectives, from.templates.floats.data(), size.k,
                   {scratch.data(), static_cast<std::int64_t>(scratch.size() * 8)},
                   found.scores.data(), found.indices.data(), {});
  EXPECT(emulator::launches - before == 2);
  return found;
}

void test_exact(const TopkCase& size, FeatureKind kind, bool excludes) {
  const TopkArguments from(size);
  const Chosen expected = from.expected(kind, excludes);
  EXPECT(choose(from, from.candidates(kind, excludes)) == expected);
  if (excludes) return;
  // Another order of blocks and threads, and other numbers of blocks.
  emulator::schedule = {true, 7, true};
  for (int blocks : {1, 9}) {
    device::emulated_multiprocessors = blocks;
    EXPECT(choose(from, from.candidates(kind, excludes)) == expected);
  }
  emulator::schedule = {};
  device::emulated_multiprocessors = 2;
}

// Rows that do not begin at multiples of 16 bytes.
void test_any_address(FeatureKind kind) {
  const TopkArguments from({20, 64, 3, 4});
  CandidatePool pool = from.candidates(kind, false);
  const std::int64_t bytes = kind == FeatureKind::float32 ? 4 : kind == FeatureKind::int8 ? 1 : 2;
  std::vector<char> moved(20 * 64 * bytes + bytes);
  std::memcpy(moved.data() + bytes, pool.data, 20 * 64 * bytes);
  pool.data = moved.data() + bytes;
  EXPECT(choose(from, pool) == from.expected(kind, false));
}

void test_not_finite() {
  TopkArguments from({40, 70, 3, 38});
  from.pool.floats[3 * 70] = NAN;
  from.pool.floats[5 * 70 + 69] = INFINITY;
  from.pool.floats[38 * 70 + 40] = -INFINITY;
  from.templates.floats[70 + 7] = INFINITY;
  const Chosen found = choose(from, from.candidates(FeatureKind::float32, false));
  EXPECT(found == from.expected(FeatureKind::float32, false));
  EXPECT(found.indices[36] >= 0 && found.indices[37] == -1 && found.indices[38] == -1);
}

void test_bars() {
  TopkArguments from({30, 3000, 4, 30});
  from.pool.floats = random_numbers<float>(30 * 3000, 4);
  from.templates.floats = random_numbers<float>(4 * 3000, 5);
  const Chosen found = choose(from, from.candidates(FeatureKind::float32, false));
  std::vector<double> wanted;
  for (int i = 0; i < 4 * 30; ++i) {
    const float* const x = from.pool.floats.data() + found.indices[i] * 3000;
    wanted.push_back(
        std::inner_product(x, x + 3000, from.templates.floats.data() + i / 30 * 3000, 0.0));
  }
  EXPECT(close(found.scores, wanted, 2e-6));
}

bool refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void test_refusals() {
  for (std::int64_t wrong : {std::int64_t{0}, std::int64_t{1} << 31}) {
    EXPECT(refused([&] { cuda::topk_bytes(wrong, 1, 1); }));
    EXPECT(refused([&] { cuda::topk_bytes(9, wrong, 1); }));
    EXPECT(refused([&] { cuda::topk_bytes(9, 1, wrong); }));
  }
  EXPECT(refused([] { cuda::topk_bytes(9, 1, 10); }));
  EXPECT(refused([] { cuda::topk_bytes(9000, 1, cuda::kMostChoices + 1); }));
  const TopkArguments from({9, 4, 2, 3});
  const CandidatePool pool = from.candidates(FeatureKind::float32, false);
  Chosen found(from.size);
  std::vector<std::uint64_t> scratch(cuda::topk_bytes(9, 2, 3) / 8);
  const auto call = [&](std::int64_t bytes) {
    cuda::score_topk(pool, 2, from.templates.floats.data(), 3, {scratch.data(), bytes},
                     found.scores.data(), found.indices.data(), {});
  };
  call(static_cast<std::int64_t>(scratch.size() * 8));
  EXPECT(refused([&] { call(static_cast<std::int64_t>(scratch.size() * 8) - 1); }));
}

}  // namespace

int main() {
  for (FeatureKind kind : {FeatureKind::float32, FeatureKind::bfloat16, FeatureKind::int8}) {
    for (const TopkCase& size : kCases) {
      for (bool excludes : {false, true}) test_exact(size, kind, excludes);
    }
    test_any_address(kind);
  }
  test_not_finite();
  test_bars();
  test_refusals();
  std::puts("score_topk on emulated CUDA: passed");
}
