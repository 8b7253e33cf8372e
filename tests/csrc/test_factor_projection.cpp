// The projection on every path against loops in double, and no allocation once a plan has run.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "blobgpt_paths.h"
#include "count_allocations.h"
#include "kernels/factor_projection.h"
#include "runtime/thread_pool.h"

using namespace brainfast;

namespace {

struct Case {
  std::int64_t images, tokens, channels, latent;
};

const std::vector<Case> kCases = {{1, 1, 1, 1},    {3, 2, 7, 3},  {2, 5, 33, 17}, {2, 50, 7, 40},
                                  {1, 257, 33, 5}, {0, 5, 7, 3},  {2, 5, 7, 0},   {2, 13, 130, 33},
                                  {1, 3, 290, 50}, {130, 2, 3, 9}};

template <class T>
struct Arguments {
  explicit Arguments(const Case& size, unsigned seed = 0)
      : size(size),
        tokens(random_numbers<T>(size.images * size.tokens * size.channels, seed + 1)),
        filters(random_numbers<T>(size.latent * size.channels, seed + 2)),
        maps(random_numbers<T>(size.latent * size.tokens, seed + 3)) {}

  ProjectionInputs<T> inputs() const {
    return {size.images,   size.tokens,    size.channels, size.latent,
            tokens.data(), filters.data(), maps.data()};
  }

  Case size;
  std::vector<T> tokens, filters, maps;
};

struct Answers {
  std::vector<double> latent, tokens, filters, maps;
};

template <class T>
Answers naive(const Arguments<T>& from, const std::vector<T>& grad_output) {
  const auto& [images, tokens, channels, latent] = from.size;
  Answers to{std::vector<double>(images * latent), std::vector<double>(from.tokens.size()),
             std::vector<double>(from.filters.size()), std::vector<double>(from.maps.size())};
  for (std::int64_t b = 0; b < images; ++b) {
    for (std::int64_t k = 0; k < latent; ++k) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < channels; ++c) {
          const std::int64_t x = (b * tokens + t) * channels + c, f = k * channels + c;
          const std::int64_t m = k * tokens + t, p = b * latent + k;
          const double token = from.tokens[x], filter = from.filters[f], map = from.maps[m];
          to.latent[p] += map * filter * token;
          to.tokens[x] += grad_output[p] * map * filter;
          to.filters[f] += grad_output[p] * map * token;
          to.maps[m] += grad_output[p] * filter * token;
        }
      }
    }
  }
  return to;
}

template <class T>
void test_operator(const Case& size, Isa isa) {
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
  const Arguments<T> from(size);
  const auto grad_output = random_numbers<T>(size.images * size.latent, 9);
  const Answers wanted = naive(from, grad_output);
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    std::vector<T> latent(wanted.latent.size());
    factor_projection_forward<T>(from.inputs(), latent.data(), isa);
    EXPECT(close(latent, wanted.latent, tolerance));
    std::vector<T> tokens(from.tokens.size()), filters(from.filters.size());
    std::vector<T> maps(from.maps.size());
    factor_projection_backward<T>(from.inputs(), grad_output.data(),
                                  {tokens.data(), filters.data(), maps.data()}, isa);
    EXPECT(close(tokens, wanted.tokens, tolerance));
    EXPECT(close(filters, wanted.filters, tolerance));
    EXPECT(close(maps, wanted.maps, tolerance));
  }
}

// [B,T,C] from token `first` on -> [B,C,T - first].
std::vector<float> channels_first(const Arguments<float>& from, std::int64_t first) {
  const auto& [images, tokens, channels, latent] = from.size;
  std::vector<float> to;
  for (std::int64_t b = 0; b < images; ++b) {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t t = first; t < tokens; ++t) {
        to.push_back(from.tokens[(b * tokens + t) * channels + c]);
      }
    }
  }
  return to;
}

std::vector<float> class_tokens(const Arguments<float>& from) {
  std::vector<float> to;
  const std::int64_t size = from.size.tokens * from.size.channels;
  for (std::int64_t b = 0; b < from.size.images; ++b) {
    const auto begin = from.tokens.begin() + b * size;
    to.insert(to.end(), begin, begin + from.size.channels);
  }
  return to;
}

void test_plan(const Case& size, Precision precision, Isa isa) {
  const Arguments<float> one(size), two(size, 10);
  const auto bias = random_numbers<float>(size.latent, 8);
  const auto grad_output = random_numbers<float>(size.images * size.latent, 9);
  Answers wanted{std::vector<double>(size.images * size.latent), {}, {}, {}};
  std::vector<std::vector<double>> adjoint;
  for (Arguments<float> layer : {one, two}) {
    for (auto* part : {&layer.tokens, &layer.filters, &layer.maps}) {
      *part = rounded(*part, precision);
    }
    const Answers found = naive(layer, grad_output);
    for (std::size_t i = 0; i < wanted.latent.size(); ++i) wanted.latent[i] += found.latent[i];
    adjoint.push_back(found.tokens);
  }
  for (std::size_t i = 0; i < wanted.latent.size(); ++i) wanted.latent[i] += bias[i % size.latent];

  const std::vector<ProjectionLayer> layers = {
      {size.tokens, size.channels, one.filters.data(), one.maps.data()},
      {size.tokens, size.channels, two.filters.data(), two.maps.data()}};
  const FactorProjectionPlan plan(size.latent, 2, layers.data(), bias.data(), isa, precision);
  // The second layer in each of the forms.
  const auto all = channels_first(two, 0), local = channels_first(two, 1);
  const auto global = class_tokens(two);
  for (const ProjectionSource& form : {ProjectionSource{two.tokens.data(), nullptr, false},
                                       ProjectionSource{all.data(), nullptr, true},
                                       ProjectionSource{local.data(), global.data(), true}}) {
    const std::vector<ProjectionSource> sources = {{one.tokens.data(), nullptr, false}, form};
    std::vector<float> first(wanted.latent.size());
    for (int threads : {1, 2, 3}) {
      set_num_threads(threads);
      std::vector<float> latent(first.size());
      plan.run(size.images, sources.data(), latent.data());
      EXPECT(close(latent, wanted.latent, 5e-5));
      if (threads > 1) EXPECT(latent == first);  // the same bits for any number of threads
      first = latent;
    }
  }
  std::vector<float> to_one(one.tokens.size()), to_two(two.tokens.size());
  float* const to[] = {to_one.data(), to_two.data()};
  plan.adjoint(size.images, grad_output.data(), to);
  EXPECT(close(to_one, adjoint[0], 2e-5));
  EXPECT(close(to_two, adjoint[1], 2e-5));
}

void test_later_calls_allocate_nothing(Precision precision, Isa isa) {
  const Arguments<float> from({4, 17, 40, 50});
  const ProjectionLayer layer{17, 40, from.filters.data(), from.maps.data()};
  const FactorProjectionPlan plan(50, 1, &layer, nullptr, isa, precision);
  const ProjectionSource source{from.tokens.data(), nullptr, false};
  std::vector<float> latent(4 * 50);
  EXPECT(allocations > 0);
  plan.run(4, &source, latent.data());
  const int before = allocations;
  for (std::int64_t images : {4, 1, 3}) plan.run(images, &source, latent.data());
  EXPECT(allocations == before);
}

}  // namespace

int main() {
  for (const Case& size : kCases) {
    for (Isa isa : supported_isas()) test_operator<float>(size, isa);
    test_operator<double>(size, Isa::portable);
  }
  each_path([](Precision precision, Isa isa) {
    for (const Case& size : kCases) test_plan(size, precision, isa);
    test_later_calls_allocate_nothing(precision, isa);
  });
  std::puts("factor_projection: passed");
}
