#include "kernels/align_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "count_allocations.h"
#include "expect.h"
#include "runtime/cpu_features.h"
#include "runtime/thread_pool.h"

using namespace brainfast;

namespace {

using Numbers = std::vector<float>;

struct Layer {
  std::int64_t channels, height, width;
};

struct Case {
  std::int64_t images, channels, height, width;
  std::vector<Layer> layers;
};

const std::vector<Case> kCases = {
    {1, 128, 8, 8, {{192, 16, 16}, {130, 14, 14}, {3, 64, 64}}},
    {3, 9, 8, 8, {{1, 1, 1}, {5, 7, 7}, {65, 8, 8}}},
    {2, 1, 5, 4, {{7, 9, 3}, {2, 5, 4}}},
    {13, 17, 3, 3, {{4, 4, 100}, {4, 5, 5}}},
    {1, 70, 1, 1, {{257, 3, 5}}},
    {2, 13, 14, 14, {{6, 16, 16}, {6, 2, 3}}},
    {1, 5, 40, 1, {{3, 90, 2}}},
    {0, 4, 8, 8, {{3, 16, 16}}},
};

Numbers random_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Numbers numbers(count);
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

// All arrays are of their exact size, so that a sanitizer sees whoever reads past their end.
struct Arguments {
  explicit Arguments(const Case& test) : images(test.images) {
    shape.layers = static_cast<std::int64_t>(test.layers.size());
    shape.channels = test.channels;
    shape.height = test.height;
    shape.width = test.width;
    unsigned seed = 0;
    for (const Layer& layer : test.layers) {
      trunk_channels.push_back(layer.channels);
      local.push_back(random_numbers(images * layer.channels * layer.height * layer.width, ++seed));
      global.push_back(random_numbers(images * layer.channels, ++seed));
      bottleneck_local.push_back(random_numbers(test.channels * layer.channels, ++seed));
      bottleneck_global.push_back(random_numbers(test.channels * layer.channels, ++seed));
      sources.push_back({local.back().data(), layer.height, layer.width});
    }
    for (std::size_t l = 0; l < global.size(); ++l) {
      vectors.push_back(global[l].data());
      local_matrices.push_back(bottleneck_local[l].data());
      global_matrices.push_back(bottleneck_global[l].data());
    }
    offset_local = random_numbers(shape.layers * shape.channels, ++seed);
    offset_global = random_numbers(shape.layers * shape.channels, ++seed);
    shape.trunk_channels = trunk_channels.data();
  }
  Arguments(const Arguments&) = delete;

  AlignParameters parameters() const {
    return {local_matrices.data(), global_matrices.data(), offset_local.data(),
            offset_global.data()};
  }
  AlignTokens tokens() const { return {images, sources.data(), vectors.data()}; }

  std::int64_t images;
  AlignShape shape;
  std::vector<std::int64_t> trunk_channels;
  std::vector<Numbers> local, global, bottleneck_local, bottleneck_global;
  std::vector<AlignSource> sources;
  std::vector<const float*> vectors, local_matrices, global_matrices;
  Numbers offset_local, offset_global;
};

struct Answer {
  explicit Answer(const Arguments& arguments) {
    const std::int64_t rows = arguments.images * arguments.shape.layers * arguments.shape.channels;
    local.resize(rows * arguments.shape.pixels());
    global.resize(rows);
  }
  bool operator==(const Answer& other) const {
    return local == other.local && global == other.global;
  }

  Numbers local, global;
};

// One target pixel of one source channel.
double sample(const float* from, const AlignSource& source, const AlignShape& shape, std::int64_t y,
              std::int64_t x) {
  const auto place = [](std::int64_t at, std::int64_t target, std::int64_t size) {
    return std::clamp((at + 0.5) * size / target - 0.5, 0.0, size - 1.0);
  };
  const double row = place(y, shape.height, source.height);
  const double column = place(x, shape.width, source.width);
  double sum = 0;
  for (std::int64_t a = 0; a < source.height; ++a) {
    for (std::int64_t b = 0; b < source.width; ++b) {
      const double weight =
          std::max(0.0, 1 - std::abs(row - a)) * std::max(0.0, 1 - std::abs(column - b));
      if (weight > 0) sum += weight * from[a * source.width + b];
    }
  }
  return sum;
}

Answer naive(const Arguments& arguments) {
  const AlignShape& shape = arguments.shape;
  Answer answer(arguments);
  const std::int64_t targets = shape.height * shape.width;
  for (std::int64_t image = 0; image < arguments.images; ++image) {
    for (std::int64_t l = 0; l < shape.layers; ++l) {
      const std::int64_t count = arguments.trunk_channels[l];
      const AlignSource& source = arguments.sources[l];
      std::vector<double> resampled(count * targets);
      for (std::int64_t i = 0; i < count * targets; ++i) {
        const float* const from =
            source.data + (image * count + i / targets) * source.height * source.width;
        const std::int64_t pixel = i % targets;
        resampled[i] = sample(from, source, shape, pixel / shape.width, pixel % shape.width);
      }
      for (std::int64_t d = 0; d < shape.channels; ++d) {
        const std::int64_t row = (image * shape.layers + l) * shape.channels + d;
        std::vector<double> local(targets, arguments.offset_local[l * shape.channels + d]);
        double global = arguments.offset_global[l * shape.channels + d];
        for (std::int64_t c = 0; c < count; ++c) {
          global += double(arguments.bottleneck_global[l][d * count + c]) *
                    arguments.global[l][image * count + c];
          for (std::int64_t p = 0; p < targets; ++p) {
            local[p] += arguments.bottleneck_local[l][d * count + c] * resampled[c * targets + p];
          }
        }
        answer.global[row] = static_cast<float>(global);
        double mean = 0;
        for (std::int64_t p = 0; p < targets; ++p) {
          mean += local[p] / targets;
          if (!shape.pool_space) answer.local[row * targets + p] = static_cast<float>(local[p]);
        }
        if (shape.pool_space) answer.local[row] = static_cast<float>(mean);
      }
    }
  }
  return answer;
}

bool close(const Numbers& found, const Numbers& wanted) {
  double largest = 0, error = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(double(wanted[i])));
    const double difference = std::abs(double(found[i]) - wanted[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return found.size() == wanted.size() && error <= 1e-5 * (largest + 1e-3);
}

void test_against_loops(const Case& test, bool pool_space, Isa isa) {
  Arguments arguments(test);
  arguments.shape.pool_space = pool_space;
  const Answer wanted = naive(arguments);
  const AlignTokensPlan plan(arguments.shape, arguments.parameters(), isa);
  Answer first(arguments);
  for (int threads : {1, 2, 3, 16}) {
    set_num_threads(threads);
    Answer found(arguments);
    plan.run(arguments.tokens(), found.local.data(), found.global.data());
    EXPECT(close(found.local, wanted.local));
    EXPECT(close(found.global, wanted.global));
    if (threads == 1) first = found;
    EXPECT(found == first);  // the same bits for any number of threads
  }
  set_num_threads(2);
}

bool refuses(const AlignTokensPlan& plan, const Arguments& arguments) {
  Answer answer(arguments);
  try {
    plan.run(arguments.tokens(), answer.local.data(), answer.global.data());
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// Every single token is looked at, whether or not the target grid reads it.
void test_refusals(const Case& test, bool pool_space, Isa isa) {
  Arguments arguments(test);
  arguments.shape.pool_space = pool_space;
  const AlignTokensPlan plan(arguments.shape, arguments.parameters(), isa);
  EXPECT(!refuses(plan, arguments));
  std::mt19937 generator(1);
  for (std::vector<Numbers>* inputs : {&arguments.local, &arguments.global}) {
    for (Numbers& input : *inputs) {
      for (float wrong : {NAN, INFINITY, -INFINITY}) {
        const std::size_t places[] = {0, input.size() / 2, input.size() - 1,
                                      generator() % input.size()};
        for (std::size_t place : places) {
          const float right = std::exchange(input[place], wrong);
          EXPECT(refuses(plan, arguments));
          input[place] = right;
        }
      }
    }
  }
  EXPECT(!refuses(plan, arguments));
}

void test_later_calls_allocate_nothing(bool pool_space) {
  const Case test{3, 40, 8, 8, {{100, 16, 16}, {30, 7, 7}}};
  Arguments arguments(test);
  arguments.shape.pool_space = pool_space;
  const AlignTokensPlan plan(arguments.shape, arguments.parameters(), select_isa());
  Answer answer(arguments);
  plan.run(arguments.tokens(), answer.local.data(), answer.global.data());
  const int before = allocations;
  for (arguments.images = 3; arguments.images > 0; --arguments.images) {
    plan.run(arguments.tokens(), answer.local.data(), answer.global.data());
  }
  EXPECT(allocations == before);
}

void test_shared_plan() {
  const Case test{3, 40, 8, 8, {{100, 16, 16}, {30, 7, 7}}};
  const Arguments arguments(test);
  const AlignTokensPlan plan(arguments.shape, arguments.parameters(), select_isa());
  Answer wanted(arguments);
  plan.run(arguments.tokens(), wanted.local.data(), wanted.global.data());
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 10; ++repeat) {
        Answer found(arguments);
        plan.run(arguments.tokens(), found.local.data(), found.global.data());
        EXPECT(found == wanted);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  for (const Case& test : kCases) {
    for (Isa isa : supported_isas()) {
      for (bool pool_space : {false, true}) {
        test_against_loops(test, pool_space, isa);
        if (test.images > 0) test_refusals(test, pool_space, isa);
      }
    }
  }
  for (bool pool_space : {false, true}) test_later_calls_allocate_nothing(pool_space);
  test_shared_plan();
  std::puts("align_tokens: passed");
}
