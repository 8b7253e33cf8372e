// Choosing candidates on every path: exactly what a stable sort of exact scores gives, the bars of
// scores that are not exact, the same bits for any number of threads, and no allocation once a call
// of the same sizes has been made.
#include "kernels/score_topk.h"

#include <cstdio>

#include "blobgpt_paths.h"
#include "count_allocations.h"
#include "runtime/thread_pool.h"
#include "topk_cases.h"

using namespace brainfast;

namespace {

// Sizes around the kernels' vectors, tiles, chunks and tasks.
const std::vector<TopkCase> kCases = {{1, 1, 1, 1},     {50, 33, 7, 3},     {300, 64, 24, 10},
                                      {41, 2049, 5, 4}, {70, 40, 33, 70},   {9, 4127, 1, 9},
                                      {600, 5, 2, 600}, {35, 128, 3, 0},    {0, 8, 2, 0},
                                      {20, 31, 0, 2},   {1000, 16, 6, 1000}};

using Kinds = std::vector<FeatureKind>;

Kinds pools_of(Precision precision) {
  if (precision == Precision::fp32) return {FeatureKind::float32};
  return {FeatureKind::bfloat16, FeatureKind::int8};
}

Kinds templates_of(Precision precision) {
  if (precision == Precision::fp32) return {FeatureKind::float32, FeatureKind::bfloat16};
  return {precision == Precision::bf16 ? FeatureKind::bfloat16 : FeatureKind::float32};
}

Chosen choose(const TopkCase& size, const CandidatePool& pool, const TemplateRows& templates,
              Isa isa, bool screen = false) {
  Chosen found(size);
  score_topk(pool, templates, size.k, found.scores.data(), found.indices.data(), isa, screen);
  return found;
}

Chosen run_plan(ScoreTopkPlan& plan, const TopkArguments& from, const TemplateRows& templates,
                Isa isa) {
  Chosen found(from.size);
  plan.run(templates, from.size.k, from.exclude.data(), found.scores.data(), found.indices.data(),
           isa, true);
  return found;
}

bool screens(Isa isa) {
  const std::vector<Isa> isas = supported_isas(Precision::bf16);
  return (isa == Isa::avx512 || isa == Isa::avx512bf16) &&
         std::find(isas.begin(), isas.end(), Isa::avx512bf16) != isas.end() &&
         can_screen("avx512bf16");
}

void test_exact(const TopkArguments& from, FeatureKind pool, FeatureKind templates, Isa isa) {
  const TopkCase& size = from.size;
  const TemplateRows rows{size.objectives, from.templates.as(templates), templates};
  for (bool excludes : {false, true}) {
    const Chosen expected = from.expected(pool, excludes);
    for (int threads : {1, 2, 3}) {
      set_num_threads(threads);
      EXPECT(choose(size, from.candidates(pool, excludes), rows, isa) == expected);
    }
  }
}

// Enough candidates for the screen, with equal scores and with normal numbers.
void test_screened(FeatureKind pool, FeatureKind templates, Isa isa) {
  for (const TopkCase& size : {TopkCase{1500, 70, 9, 6}, {1100, 4090, 24, 20}}) {
    TopkArguments from(size);
    const TemplateRows rows{size.objectives, from.templates.as(templates), templates};
    set_num_threads(3);
    for (int pass = 0; pass < 2; ++pass) {
      const Chosen plain = choose(size, from.candidates(pool, true), rows, isa);
      EXPECT(choose(size, from.candidates(pool, true), rows, isa, true) == plain);
      ScoreTopkPlan plan(from.candidates(pool, false));
      for (int threads : {3, 1, 2}) {  // the first rounds the pool, and all read it
        set_num_threads(threads);
        EXPECT(run_plan(plan, from, rows, isa) == plain);
      }
      EXPECT((plan.bytes() > 0) == (pool != FeatureKind::int8));
      set_num_threads(3);
      std::vector<float> normal = random_numbers<float>(size.candidates * size.features, 7);
      if (pool == FeatureKind::int8) {
        for (float& number : normal) number = std::round(number * 20);
      }
      from.pool = Numbers(std::move(normal));
    }
  }
}

// A score that is not finite is never chosen, wherever it comes from.
void test_not_finite(FeatureKind templates, Isa isa) {
  const TopkCase size{40, 70, 3, 38};
  TopkArguments from(size);
  from.pool.floats[3 * 70] = NAN;
  from.pool.floats[5 * 70 + 69] = INFINITY;
  from.pool.floats[38 * 70 + 40] = -INFINITY;
  from.pool.bfloats = upper_halves(from.pool.floats);
  from.templates.floats[70 + 7] = INFINITY;
  from.templates.bfloats = upper_halves(from.templates.floats);
  const TemplateRows rows{size.objectives, from.templates.as(templates), templates};
  const auto kind =
      topk_precision(FeatureKind::bfloat16, templates) == Precision::fp32 || isa <= Isa::avx512
          ? FeatureKind::float32
          : FeatureKind::bfloat16;
  const Chosen found = choose(size, from.candidates(kind, false), rows, isa);
  EXPECT(found == from.expected(kind, false));
  EXPECT(found.indices[36] >= 0 && found.indices[37] == -1 && found.indices[38] == -1);
}

// Scores of normal numbers against float64, over the spread of the scores.
void test_bars(Precision precision, FeatureKind kind, Isa isa) {
  const TopkCase size{60, 3000, 7, 60};
  TopkArguments from(size);
  from.pool.floats = random_numbers<float>(size.candidates * size.features, 4);
  from.templates.floats = random_numbers<float>(size.objectives * size.features, 5);
  if (kind == FeatureKind::int8) {
    for (float& number : from.pool.floats) number = std::round(number * 20);
  } else if (kind == FeatureKind::bfloat16) {
    from.pool.floats = rounded(from.pool.floats, Precision::bf16);
  }
  from.pool = Numbers(from.pool.floats);
  const auto templates =
      precision == Precision::bf16 ? FeatureKind::bfloat16 : FeatureKind::float32;
  if (precision == Precision::bf16) {
    from.templates.floats = rounded(from.templates.floats, Precision::bf16);
    from.templates.bfloats = upper_halves(from.templates.floats);
  }
  const Chosen found = choose(size, from.candidates(kind, false),
                              {size.objectives, from.templates.as(templates), templates}, isa);
  std::vector<double> wanted;
  for (std::int64_t i = 0; i < size.objectives * size.k; ++i) {
    const float* const x = from.pool.floats.data() + found.indices[i] * size.features;
    const float* const w = from.templates.floats.data() + i / size.k * size.features;
    const double sum = std::inner_product(x, x + size.features, w, 0.0);
    wanted.push_back(sum * (kind == FeatureKind::int8 ? from.scale[found.indices[i]] : 1));
    EXPECT(i % size.k == 0 || found.scores[i] <= found.scores[i - 1]);
  }
  EXPECT(close(found.scores, wanted, precision == Precision::bf16x3 ? 1e-5 : 2e-6));
}

void test_later_calls_allocate_nothing(FeatureKind pool, FeatureKind templates, Isa isa) {
  const TopkArguments from({1100, 70, 9, 5});
  const TemplateRows rows{9, from.templates.as(templates), templates};
  Chosen found(from.size);
  const bool screen = screens(isa);
  const auto run = [&] {
    score_topk(from.candidates(pool, true), rows, 5, found.scores.data(), found.indices.data(), isa,
               screen);
  };
  ScoreTopkPlan plan(from.candidates(pool, false));
  const auto run_planned = [&] {
    plan.run(rows, 5, nullptr, found.scores.data(), found.indices.data(), isa, screen);
  };
  run();
  run_planned();
  const int before = allocations;
  EXPECT(before > 0);
  run();
  run_planned();
  EXPECT(allocations == before);
}

}  // namespace

int main() {
  std::vector<TopkArguments> cases(kCases.begin(), kCases.end());
  each_path([&](Precision precision, Isa isa) {
    for (FeatureKind pool : pools_of(precision)) {
      for (FeatureKind templates : templates_of(precision)) {
        EXPECT(topk_precision(pool, templates) == precision);
        for (const TopkArguments& from : cases) test_exact(from, pool, templates, isa);
        if (screens(isa)) test_screened(pool, templates, isa);
        test_later_calls_allocate_nothing(pool, templates, isa);
        if (pool != FeatureKind::int8) test_not_finite(templates, isa);
      }
      test_bars(precision, pool, isa);
    }
  });
  std::puts("score_topk: passed");
}
