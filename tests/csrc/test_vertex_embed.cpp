// The embedding on every path against loops in double, the same bits in any subset, and no
// allocation once a plan has run.
#include <cstdio>
#include <vector>

#include "blobgpt_paths.h"
#include "count_allocations.h"
#include "kernels/vertex_embed.h"
#include "runtime/thread_pool.h"

using namespace brainfast;

namespace {

struct Case {
  std::int64_t images, vertices, latent;
};

const std::vector<Case> kCases = {{1, 1, 1},   {3, 19, 7},    {2, 70, 33}, {37, 40, 65},
                                  {1, 90, 40}, {13, 33, 530}, {0, 5, 7},   {2, 0, 7}};

template <class T>
struct Arguments {
  explicit Arguments(const Case& size)
      : latent(random_numbers<T>(size.images * size.latent, 1)),
        weight(random_numbers<T>(size.vertices * size.latent, 2)),
        bias(random_numbers<T>(size.vertices, 3)) {}

  std::vector<T> latent, weight, bias;
};

template <class T>
std::vector<double> naive(const Case& size, const Arguments<T>& from) {
  std::vector<double> response;
  for (std::int64_t b = 0; b < size.images; ++b) {
    for (std::int64_t v = 0; v < size.vertices; ++v) {
      double sum = from.bias[v];
      for (std::int64_t k = 0; k < size.latent; ++k) {
        sum += double(from.latent[b * size.latent + k]) * from.weight[v * size.latent + k];
      }
      response.push_back(sum);
    }
  }
  return response;
}

template <class T>
void test_operator(const Case& size, Isa isa) {
  const Arguments<T> from(size);
  std::vector<T> response(size.images * size.vertices);
  vertex_embed_forward<T>({size.vertices, size.latent, from.weight.data(), from.bias.data()},
                          size.images, from.latent.data(), response.data(), isa);
  EXPECT(close(response, naive(size, from), sizeof(T) == 4 ? 1e-5 : 1e-12));
}

void test_adjoint(const Case& size, const VertexEmbedPlan& plan, const std::vector<float>& weight) {
  const std::int64_t objectives = 14;
  const auto grad_output = random_numbers<float>(objectives * size.vertices, 4);
  std::vector<double> wanted(objectives * size.latent);
  for (std::int64_t i = 0; i < objectives * size.vertices; ++i) {
    const std::int64_t o = i / size.vertices, v = i % size.vertices;
    for (std::int64_t k = 0; k < size.latent; ++k) {
      wanted[o * size.latent + k] += double(grad_output[i]) * weight[v * size.latent + k];
    }
  }
  std::vector<float> latent(wanted.size());
  plan.adjoint(objectives, grad_output.data(), latent.data());
  EXPECT(close(latent, wanted, 2e-5));
}

void test_plan(const Case& size, Precision precision, Isa isa) {
  Arguments<float> from(size);
  const VertexEmbedPlan plan({size.vertices, size.latent, from.weight.data(), from.bias.data()},
                             isa, precision);
  std::vector<float> first(size.images * size.vertices);
  plan.run(size.images, from.latent.data(), first.data());
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    std::vector<float> response(first.size());
    plan.run(size.images, from.latent.data(), response.data());
    EXPECT(response == first);
  }
  // The last vertices and the last image alone.
  for (std::int64_t begin : {size.vertices / 3, size.vertices - 1}) {
    if (begin < 0 || size.images == 0) continue;
    const std::int64_t count = size.vertices - begin, last = size.images - 1;
    const VertexEmbedPlan part(
        {count, size.latent, from.weight.data() + begin * size.latent, from.bias.data() + begin},
        isa, precision);
    std::vector<float> response(count);
    part.run(1, from.latent.data() + last * size.latent, response.data());
    for (std::int64_t v = 0; v < count; ++v) {
      EXPECT(response[v] == first[last * size.vertices + begin + v]);
    }
  }
  from.latent = rounded(from.latent, precision);
  from.weight = rounded(from.weight, precision);
  EXPECT(close(first, naive(size, from), 5e-5));
  test_adjoint(size, plan, from.weight);
}

void test_later_calls_allocate_nothing(Precision precision, Isa isa) {
  const Case size{20, 100, 50};
  const Arguments<float> from(size);
  const VertexEmbedPlan plan({size.vertices, size.latent, from.weight.data(), nullptr}, isa,
                             precision);
  std::vector<float> response(size.images * size.vertices);
  EXPECT(allocations > 0);
  plan.run(size.images, from.latent.data(), response.data());
  const int before = allocations;
  for (std::int64_t images : {20, 1, 3}) {
    plan.run(images, from.latent.data(), response.data());
  }
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
  std::puts("vertex_embed: passed");
}
